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
    "meter_ratio": ("Ratio of two meters", "Energy"),
    "meter_lag_s": ("Lag between two meters", "Energy"),
    "calibration_gain": ("Gain", "Energy"),
    "calibration_offset_w": ("Offset", "Energy"),
    "calibration_delay_s": ("Delay of the sensor", "Energy"),
    "calibration_averaging_s": ("Averaging window of the sensor", "Energy"),
    "calibration_scatter_w": ("Scatter that is left", "Energy"),
    "calibration_nonlinearity_w": ("Off the line, at most", "Energy"),
    "latency_s": ("Latency, median", "Speed"),
    "latency_p50_s": ("Latency, median", "Speed"),
    "latency_p90_s": ("Latency, p90", "Speed"),
    "latency_p99_s": ("Latency, p99", "Speed"),
    "throughput_fps": ("Throughput", "Speed"),
    "first_latency_s": ("Latency of the very first item", "Speed"),
    "burst_latency_s": ("Latency in the first second of work", "Speed"),
    "duration_s": ("Duration", "Speed"),
    "ttft_s": ("Time to first token, median", "Speed"),
    "ttft_p90_s": ("Time to first token, p90", "Speed"),
    "ttft_p99_s": ("Time to first token, p99", "Speed"),
    "vision_s": ("Vision encoding, median", "Speed"),
    "prefill_tokens_per_s": ("Prefill speed", "Speed"),
    "decode_tokens_per_s": ("Decoding speed", "Speed"),
    "tpot_s": ("Time per token decoded, median", "Speed"),
    "tpot_p90_s": ("Time per token decoded, p90", "Speed"),
    "tpot_p99_s": ("Time per token decoded, p99", "Speed"),
    "prefill_tokens": ("Tokens of a prompt, mean", "Speed"),
    "decode_tokens": ("Tokens decoded after the first, mean", "Speed"),
    "load_s": ("Loading the model", "Speed"),
    "flops_per_s": ("Operations per second", "Work"),
    "bandwidth_bytes_per_s": ("Memory bandwidth of the model", "Work"),
    "bandwidth_utilisation": ("Read bandwidth used", "Work"),
    "read_bandwidth_bytes_per_s": ("Read bandwidth of the memory", "Work"),
    "macs_per_inference": ("Multiply-accumulates per inference", "Work"),
    "bytes_per_token": ("Bytes read per token", "Work"),
    "ap": ("AP", "Quality"),
    "ap50": ("AP50", "Quality"),
    "ap75": ("AP75", "Quality"),
    "ap_small": ("AP, small objects", "Quality"),
    "ap_medium": ("AP, medium objects", "Quality"),
    "ap_large": ("AP, large objects", "Quality"),
    "voc_ap50_area": ("VOC AP50, area", "Quality"),
    "voc_ap50_11point": ("VOC AP50, 11 points", "Quality"),
    "gqa_accuracy": ("GQA accuracy", "Quality"),
    "textvqa_accuracy": ("TextVQA accuracy", "Quality"),
    "scienceqa_image_accuracy": ("ScienceQA accuracy, with a picture", "Quality"),
    "scienceqa_accuracy": ("ScienceQA accuracy", "Quality"),
    "pope_f1": ("POPE F1", "Quality"),
    "pope_accuracy": ("POPE accuracy", "Quality"),
    "mme_perception": ("MME perception", "Quality"),
    "mme_cognition": ("MME cognition", "Quality"),
    "mmbench_accuracy": ("MMBench accuracy", "Quality"),
    "mmbench_vanilla_accuracy": ("MMBench accuracy, original order", "Quality"),
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

GROUPS = ("Energy", "Speed", "Work", "Quality", "State of the device", "Size", "Other")


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


def group_of(words: str) -> str:
    """The heading of the metric that is called so; "" if none is."""
    return next((group for name, group in _WORDS.values() if name == words), "")


def unit(m: Measurement) -> str:
    """The unit a measurement is printed in: rates of pictures are FPS, not 1/s, those of tokens tokens/s."""
    if m.unit in ("1/s", "Hz", "fps"):
        if m.metric.endswith("_fps"):
            return "fps"
        if m.metric.endswith("_tokens_per_s"):
            return "tokens/s"
    return m.unit


def place(m: Measurement) -> tuple[int, int, str, str, str]:
    """The place of a measurement in a list: by group and metric, the whole (`window`) before its phases."""
    return (
        GROUPS.index(group(m.metric, m.unit)),
        _ORDER.get(m.metric, len(_ORDER)),
        m.metric,
        "" if m.phase in ("window", "run") else m.phase,
        m.meter,
    )
