"""MobileVLM and Imp written out plainly in numpy and float64, along their descriptions.

Nothing is cached, fused or left out for speed; every pass reads the whole prompt.
"""

import numpy as np
from scipy.special import erf

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."


def weights(keys, seed):
    """Float32 arrays of the given shapes: norms near one, biases near zero, matrices that keep the size of values."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for key, shape in keys.items():
        fan = np.prod(shape[1:]) if len(shape) > 1 else 100
        if "embed" in key and "patch" not in key:
            fan = 1
        mean = 1 if key.endswith("weight") and len(shape) == 1 else 0
        arrays[key] = (mean + draw.normal(0, 1, shape) / np.sqrt(fan)).astype(np.float32)
    return arrays


class Plain:
    """One network: the architecture's numbers, and float arrays under the official keys."""

    def __init__(self, architecture, arrays):
        self.architecture = architecture
        self.w = {k: v.astype(np.float64) for k, v in arrays.items()}

    def linear(self, name, x):
        y = x @ self.w[f"{name}.weight"].reshape(len(self.w[f"{name}.weight"]), -1).T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, name, x, eps):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    def rms(self, name, x, eps):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self.w[f"{name}.weight"]

    # Vision

    def features(self, picture):
        """(3, side, side) to (patches, width)."""
        v = self.architecture.vision
        grid, side = v.grid, v.grid * v.patch
        patches = picture[:, :side, :side].astype(np.float64).reshape(3, grid, v.patch, grid, v.patch)
        x = self.linear(f"{TOWER}embeddings.patch_embedding", patches.transpose(1, 3, 0, 2, 4).reshape(grid**2, -1))
        if v.kind == "clip":
            x = np.concatenate([self.w[f"{TOWER}embeddings.class_embedding"][None], x])
        x = x + self.w[f"{TOWER}embeddings.position_embedding.weight"]
        if v.kind == "clip":
            x = self.norm(f"{TOWER}pre_layrnorm", x, v.eps)
        for i in range(v.layers_run):
            p = f"{TOWER}encoder.layers.{i}."
            h = self.norm(f"{p}layer_norm1", x, v.eps)
            q, k, u = (heads(self.linear(f"{p}self_attn.{n}_proj", h), v.heads) for n in "qkv")
            x = x + self.linear(f"{p}self_attn.out_proj", attention(q, k, u, np.ones((len(x), len(x)), bool)))
            h = self.linear(f"{p}mlp.fc1", self.norm(f"{p}layer_norm2", x, v.eps))
            h = h / (1 + np.exp(-1.702 * h)) if v.kind == "clip" else gelu_tanh(h)
            x = x + self.linear(f"{p}mlp.fc2", h)
        return x[1:] if v.kind == "clip" else x

    # Projectors

    def projected(self, x):
        """(patches, vision width) to (tokens, text width)."""
        kind, p = self.architecture.projector, PROJECTOR
        if kind == "linear":
            return self.linear(p[:-1], x)
        if kind == "ldpnet":
            x = self.linear(f"{p}model.mlp.3", gelu(self.linear(f"{p}model.mlp.1", x)))
            x = square(x)
            x = x + self.ldp_block(f"{p}model.mb_block.1.block.", x, 1)
            x = self.ldp_block(f"{p}model.mb_block.2.block.", x, 2)
        elif kind == "ldpnetv2":
            x = pooled(square(self.linear(f"{p}mlp.mlp.2", gelu(self.linear(f"{p}mlp.mlp.0", x)))), 12)
            x = depthwise(x, self.w[f"{p}peg.peg.0.weight"], 1) + self.w[f"{p}peg.peg.0.bias"] + x
        else:
            x = self.linear(f"{p}0", x)
            for i in range(1, int(kind[3])):
                x = self.linear(f"{p}{2 * i}", gelu(x))
        return x.reshape(-1, x.shape[-1])

    def ldp_block(self, p, x, stride):
        x = self.norm(f"{p}0.1", depthwise(x, self.w[f"{p}0.0.weight"], stride), 1e-5)
        x = x * hard_sigmoid(x)
        squeezed = np.maximum(self.linear(f"{p}1.fc1", x.mean((0, 1))), 0)
        x = x * hard_sigmoid(self.linear(f"{p}1.fc2", squeezed))
        return self.norm(f"{p}2.1", self.linear(f"{p}2.0", x), 1e-5)

    # Text

    def embedded(self, ids):
        return self.w["model.embed_tokens.weight"][np.asarray(ids, int)]

    def logits(self, embeds):
        """Embeddings (tokens, width) to logits (tokens, vocabulary)."""
        return self.linear("lm_head", self.hidden(embeds))

    def hidden(self, x):
        t = self.architecture.text
        back = np.arange(len(x))[:, None] - np.arange(len(x))
        seen = (back >= 0) & (back < (t.sliding_window or len(x)))
        for i in range(t.layers):
            p = f"model.layers.{i}."
            if t.kind == "phi":
                h = self.norm(f"{p}input_layernorm", x, t.eps)
                x = (
                    x
                    + self.attention(p, h, seen)
                    + self.linear(f"{p}mlp.fc2", gelu_tanh(self.linear(f"{p}mlp.fc1", h)))
                )
            else:
                x = x + self.attention(p, self.rms(f"{p}input_layernorm", x, t.eps), seen)
                h = self.rms(f"{p}post_attention_layernorm", x, t.eps)
                if t.kind == "phi3":
                    gate, up = np.split(self.linear(f"{p}mlp.gate_up_proj", h), 2, axis=-1)
                else:
                    gate, up = self.linear(f"{p}mlp.gate_proj", h), self.linear(f"{p}mlp.up_proj", h)
                x = x + self.linear(f"{p}mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        if t.kind == "phi":
            return self.norm("model.final_layernorm", x, t.eps)
        return self.rms("model.norm", x, t.eps)

    def attention(self, p, h, seen):
        t = self.architecture.text
        width, kv = t.hidden, t.kv_heads * t.head_dim
        if t.kind == "phi3":
            q, k, v = np.split(self.linear(f"{p}self_attn.qkv_proj", h), [width, width + kv], axis=-1)
        else:
            q, k, v = (self.linear(f"{p}self_attn.{n}_proj", h) for n in "qkv")
        q, k, v = heads(q, t.heads), heads(k, t.kv_heads), heads(v, t.kv_heads)
        q, k = (rotated(x, t.rope_theta, int(t.head_dim * t.rotary_share)) for x in (q, k))
        k, v = (np.repeat(x, t.heads // t.kv_heads, axis=0) for x in (k, v))
        return self.linear(f"{p}self_attn.{'dense' if t.kind == 'phi' else 'o_proj'}", attention(q, k, v, seen))


def heads(x, n):
    return x.reshape(len(x), n, -1).transpose(1, 0, 2)


def attention(q, k, v, seen):
    """Heads (n, tokens, dim) and who sees whom (tokens, tokens) to (tokens, n * dim)."""
    scores = np.where(seen, q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]), -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    context = shares / shares.sum(-1, keepdims=True) @ v
    return context.transpose(1, 0, 2).reshape(q.shape[1], -1)


def rotated(x, theta, r):
    angle = np.arange(x.shape[1])[:, None] * theta ** (-2 * np.arange(r // 2) / r)
    a, b, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def hard_sigmoid(x):
    return np.clip(x + 3, 0, 6) / 6


def square(x):
    side = int(len(x) ** 0.5)
    return x.reshape(side, side, -1)


def depthwise(x, kernel, stride):
    """3 x 3 over (height, width, channels) with a margin of one zero; kernel (channels, 1, 3, 3)."""
    height, width, _ = x.shape
    framed = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    taps = (framed[i : i + height, j : j + width] * kernel[:, 0, i, j] for i in range(3) for j in range(3))
    return sum(taps)[::stride, ::stride]


def pooled(x, side):
    height, width, _ = x.shape

    def windows(n):
        return [slice(i * n // side, -(-(i + 1) * n // side)) for i in range(side)]

    return np.array([[x[rows, columns].mean((0, 1)) for columns in windows(width)] for rows in windows(height)])
