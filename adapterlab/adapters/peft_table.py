"""What we know of peft's methods: a line about each, its paper, where it works; and which are left out, and why.

`conv1d`, `alone`, `merges` and `merges_alone` were found by trying; the tests do that again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple


class Known(NamedTuple):
    """One method of peft.

    `divides` names options that must divide the widths of the adapted layers, `most` gives the largest value that an
    option may have on a layer of (in, out) features. The first of `divides`, and all of `most`, are fitted to the
    layers where the user leaves them out. `sides` are the widths that count: 0 what goes in, 1 what comes out.
    `defaults` are ours where peft's don't serve.
    """

    summary: str
    paper: str = ""
    conv1d: bool = False  # adapts GPT-2's Conv1D
    alone: bool = False  # only one adapter of it can be active
    merges: bool = True
    merges_alone: bool = False  # what it does to a weight depends on what else is active there
    divides: tuple[str, ...] = ()
    sides: tuple[int, ...] = (0, 1)
    most: dict[str, Callable[[int, int], int]] = {}  # noqa: RUF012 (never written to)
    defaults: dict[str, Any] = {}  # noqa: RUF012
    choices: dict[str, Any] = {}  # noqa: RUF012 (types of options that peft doesn't check)


def _elements(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out


def _inputs(fan_in: int, fan_out: int) -> int:
    return fan_in


def _half_full(fan_in: int, fan_out: int) -> int:
    """Return the largest r with r (in + out) elements of in x out."""
    return fan_in * fan_out // (fan_in + fan_out)


KNOWN: dict[str, Known] = {
    "adamss": Known("low-rank updates in clusters of a linear's principal subspace", most={"r": min}),
    "beft": Known("a trained bias on each linear, nothing else", "arXiv:2509.15974"),
    "boft": Known(
        "linears turned by products of sparse orthogonal (butterfly) matrices",
        "Liu et al. 2023, arXiv:2311.06243",
        merges_alone=True,
        divides=("boft_block_size", "boft_block_num"),
        sides=(0,),
    ),
    "bone": Known("block-affine updates of the linears; became miss", "Kang 2024, arXiv:2409.15371", divides=("r",)),
    "c3a": Known(
        "updates that are block-circulant: one kernel per block, applied by FFT",
        "Chen et al. 2024, arXiv:2407.19342",
        alone=True,
        divides=("block_size",),
    ),
    "deft": Known(
        "replaces the part of each weight along a few learned directions",
        conv1d=True,
        merges_alone=True,
        most={"r": min},
    ),
    "delora": Known(
        "LoRA with normalised rank-one parts: direction and strength are learned apart",
        "Bini et al. 2025, arXiv:2503.18225",
        most={"r": min},
    ),
    "fourierft": Known(
        "a few trained coefficients of each update's Fourier transform",
        "Gao et al. 2024, arXiv:2405.03003",
        conv1d=True,
        most={"n_frequency": _elements},
    ),
    "frod": Known(
        "scales and sparse couplings in a basis that all layers' weights share",
        "doi:10.1609/aaai.v40i31.39813",
        conv1d=True,
        merges_alone=True,
    ),
    "glora": Known(
        "scales and shifts weights and biases by low-rank terms and vectors",
        "Chavan et al. 2023, arXiv:2306.07967",
        merges_alone=True,
        most={"r": min},
    ),
    "gralora": Known(
        "LoRA per block: each of k x k blocks of the weight has its own low rank",
        "Jung et al. 2025, arXiv:2505.20355",
        conv1d=True,
        most={"r": min},
    ),
    "hira": Known(
        "high-rank updates: the weight, element by element, times a low-rank matrix",
        conv1d=True,
        merges_alone=True,
        most={"r": min},
    ),
    "hra": Known(
        "linears turned by a chain of Householder reflections",
        "Yuan et al. 2024, arXiv:2405.17484",
        merges_alone=True,
        most={"r": _inputs},
    ),
    "ia3": Known(
        "scales keys, values and the FFN's inner activations; the fewest parameters",
        "Liu et al. 2022, arXiv:2205.05638",
        conv1d=True,
        merges_alone=True,
    ),
    "lily": Known(
        "low-rank updates whose up-projections layers share, mixed for the whole batch by a router",
        "Zhong et al. 2024, arXiv:2407.09946",
        most={"r": min},
        merges=False,  # the mix depends on the input
    ),
    "ln_tuning": Known("trains copies of the norms", "Zhao et al. 2023, arXiv:2312.11420", conv1d=True, alone=True),
    "loha": Known(
        "element-wise product of two low-rank matrices (LyCORIS)",
        "Hyeon-Woo et al. 2021, arXiv:2108.06098",
        most={"r": min},
    ),
    "lokr": Known("Kronecker product of small matrices (LyCORIS)", "Yeh et al. 2023, arXiv:2309.14859"),
    "miss": Known(
        "one small block, shared along each linear's input",
        "Kang & Yin 2024, arXiv:2409.15371",
        most={"r": min},
    ),
    "oft": Known(
        "linears turned by block-diagonal orthogonal matrices",
        "Qiu et al. 2023, arXiv:2306.07280",
        merges_alone=True,
        divides=("oft_block_size", "r"),
        sides=(0,),
    ),
    "osf": Known(
        "trains the small singular directions, keeps the large ones: for one task after another",
        "Nayak et al. 2025, arXiv:2504.07097",
        alone=True,
    ),
    "peanut": Known(
        "updates that a small network computes from the weight",
        "Zhong et al. 2024, arXiv:2410.01870",
        merges_alone=True,
        most={"r": min},
    ),
    "psoft": Known("an orthogonal turn inside each weight's principal subspace", most={"r": min}),
    "pvera": Known("VeRA whose scales are drawn at random while it trains", "arXiv:2512.07703", conv1d=True),
    "randlora": Known(
        "full-rank updates: scaled sums of fixed random low-rank matrices",
        "Albert et al. 2025, arXiv:2502.00987",
        conv1d=True,
        most={"r": min},
    ),
    "road": Known(
        "turns pairs of output features in the plane",
        "Liao & Monz 2024, arXiv:2409.00119",
        merges_alone=True,
        divides=("group_size",),
        sides=(1,),
    ),
    "shira": Known(
        "trains a sparse random choice of each weight's elements",
        "Bhardwaj et al. 2024, arXiv:2406.13175",
        most={"r": _half_full},
        defaults={"random_seed": 0},  # without one, a run that resumes would choose other elements
    ),
    "supertuning": Known(
        "trains the largest one per cent of each weight's elements", "arXiv:2607.09287", most={"r": min}
    ),
    "tinylora": Known(
        "a few dozen numbers in all, through fixed random maps",
        "arXiv:2602.04118",
        conv1d=True,
        most={"r": min},
        choices={"init_weights": Literal[True, "uniform"]},
    ),
    "unilora": Known(
        "all LoRA weights are entries of one short trained vector",
        "arXiv:2506.00799",
        conv1d=True,
        most={"r": min},
    ),
    "vblora": Known(
        "LoRA made of vectors from a bank that all layers share",
        "Li et al. 2024, arXiv:2405.15179",
        conv1d=True,
        most={"r": min},
        divides=("vector_length",),
    ),
    "vera": Known(
        "scales one pair of fixed random matrices that all layers share",
        "Kopiczko et al. 2023, arXiv:2310.11454",
        conv1d=True,
    ),
    "waveft": Known(
        "a few trained coefficients of each update's wavelet transform",
        "Bilican et al. 2025, arXiv:2505.12532",
        conv1d=True,
        most={"n_frequency": _elements},
    ),
}

# peft's names for which there is no method here, and why.
ABSENT: dict[str, str] = {
    "adaption_prompt": "it replaces Llama's attention by name; 'prefix' does as much for every architecture",
    "cartridge": "its cache is made from a corpus by tools of its own; 'prefix' trains one from scratch",
    "cpt": "it puts a given context's tokens in front of the input; see 'prompt'",
    "multitask_prompt_tuning": "it needs the task's number with each batch; see 'prompt'",
    "poly": "it needs the task's number with each batch, which no model here is given",
    "prefix_tuning": "here it is called 'prefix'",
    "shadow": "it runs a second model beside the backbone, which has to be called in its own way",
    "trainable_tokens": "it trains single rows of the embedding and must be told which; to train all of them put the "
    "embedding's name into modules_to_save",
    "xlora": "it mixes LoRA adapters that exist already; attach several 'lora' and activate them together",
}
