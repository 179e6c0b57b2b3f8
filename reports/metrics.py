"""What metrics are called on a report, and in which order they stand."""

from edgewatt.harness.api import Measurement

# metric -> (its words, its group), in the order of a report. A metric of a plugin that is not here keeps its own name
# and stands at the end.
_WORDS = {
    "energy_per_inference_j": ("Energy per inference", "Energy"),
    "energy_per_inference_net_j": ("Energy per inference, net of idle", "Energy"),
    "energy_per_token_j": ("Energy per token", "Energy"),
    "energy_per_token_net_j": ("Energy per token, net of idle", "Energy"),
    "energy_j": ("Energy", "Energy"),
    "energy_net_j": ("Energy, net of idle", "Energy"),
    "power_w": ("Power", "Energy"),
    "power_net_w": ("Power, net of idle", "Energy"),
    "idle_power_w": ("Idle power", "Energy"),
    "latency_s": ("Latency, median", "Speed"),
    "latency_p50_s": ("Latency, median", "Speed"),
    "latency_p90_s": ("Latency, p90", "Speed"),
    "latency_p99_s": ("Latency, p99", "Speed"),
    "throughput_fps": ("Throughput", "Speed"),
    "first_latency_s": ("Latency of the very first item", "Speed"),
    "burst_latency_s": ("Latency in the first second of work", "Speed"),
    "duration_s": ("Duration", "Speed"),
    "ttft_s": ("Time to first token", "Speed"),
    "vision_s": ("Vision encoding", "Speed"),
    "prefill_tokens_per_s": ("Prefill speed", "Speed"),
    "decode_tokens_per_s": ("Decoding speed", "Speed"),
    "load_s": ("Loading the model", "Speed"),
    "ap": ("AP", "Quality"),
    "ap50": ("AP50", "Quality"),
    "ap75": ("AP75", "Quality"),
    "ap_small": ("AP, small objects", "Quality"),
    "ap_medium": ("AP, medium objects", "Quality"),
    "ap_large": ("AP, large objects", "Quality"),
    "voc_ap50_area": ("VOC AP50, area", "Quality"),
    "voc_ap50_11point": ("VOC AP50, 11 points", "Quality"),
    "vqa_accuracy": ("VQA accuracy", "Quality"),
    "pope_f1": ("POPE F1", "Quality"),
    "temperature_c": ("Temperature", "State of the device"),
    "temperature_max_c": ("Temperature, highest", "State of the device"),
    "frequency_hz": ("Clock frequency", "State of the device"),
    "frequency_min_hz": ("Clock frequency, lowest", "State of the device"),
    "utilisation": ("Utilisation", "State of the device"),
    "sampler_cpu_s_per_s": ("Sampling cost (CPU seconds per second)", "State of the device"),
    "peak_memory_bytes": ("Peak memory", "Size"),
    "model_bytes": ("Model on disk", "Size"),
}
_ORDER = {metric: k for k, metric in enumerate(_WORDS)}

GROUPS = ("Energy", "Speed", "Quality", "State of the device", "Size", "Other")


def label(metric: str) -> str:
    """A metric in words; one that is not known here keeps its name, in which underscores are spaces."""
    return _WORDS[metric][0] if metric in _WORDS else metric.replace("_", " ")


def group(metric: str, unit: str = "") -> str:
    """The heading a metric stands under."""
    if metric in _WORDS:
        return _WORDS[metric][1]
    if unit in ("J", "W"):
        return "Energy"
    return "Quality" if metric.startswith(("ap", "voc_", "coco_")) else "Other"


def unit(m: Measurement) -> str:
    """The unit a measurement is printed in: rates of pictures are FPS, not 1/s."""
    return "fps" if m.metric.endswith("_fps") and m.unit in ("1/s", "Hz", "fps") else m.unit


def place(m: Measurement) -> tuple[int, int, str, str, str]:
    """The place of a measurement in a list: by group and metric, the whole (`window`) before its phases."""
    return (
        GROUPS.index(group(m.metric, m.unit)),
        _ORDER.get(m.metric, len(_ORDER)),
        m.metric,
        "" if m.phase in ("window", "run") else m.phase,
        m.meter,
    )
