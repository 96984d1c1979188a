"""Every number of the paper, and where it is said; most are flags of the scripts.

Source: Vazquez-Rodriguez et al., "Emotion Recognition with Pre-Trained Transformers Using Multimodal Signals",
ACII 2022. "paper 4.3" is a section of it; "assumed" marks a value the paper leaves open (docs/open-questions.md)."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Modality:
    """One kind of signal: what is recorded, how it is filtered, and which of its numbers are not those of STAGES."""

    label: str  # in tables and pictures
    channels: tuple[str, ...]  # in this order
    low: float  # Hz, the band-pass of its signals
    high: float  # Hz
    fused: bool  # whether fuse.py takes the features of its model
    unit: str = ""  # of its signals before they are z-scored
    flags: dict[str, dict] = field(default_factory=dict)  # stage -> flag -> value


# 4.1: the ten EEG channels that AMIGOS shares with the pre-training sets, in the paper's order; one ECG channel, of the
# left arm. 4.1.2: the band-pass. 3.4: both are fused. Where the ECG differs from STAGES, its numbers are assumed.
ECG_FLAGS = {"pretrain": {"lr": 1e-3}, "finetune": {"classifier_hidden": [1024, 512], "classifier_dropout": 0.3}}
MODALITIES = {
    "eeg": Modality("EEG", tuple("F7 F3 T7 P7 O1 O2 P8 T8 F4 F8".split()), low=0.8, high=50.0, fused=True, unit="uV"),
    "ecg": Modality("ECG", ("ECG",), low=0.8, high=50.0, fused=True, unit="mV", flags=ECG_FLAGS),
}
FUSED = tuple(name for name, modality in MODALITIES.items() if modality.fused)

# 3.2.2, 4.1: what is recognised, one network each. Data sets rate it on scales of their own.
TARGETS = ("arousal", "valence")

# 4.1.2: pre-processing.
RATE = 128  # Hz
SECONDS = 10
POINTS = RATE * SECONDS  # 1280
FILTER_ORDER = 8

# 5: evaluation.
N_FOLDS = 10
VALIDATION_PARTS = 9  # assumed: one ninth of what is left after the test fold

# Below: flag -> (value, what it is, where it is said). A list means several values, a word one of CHOICES.
CHOICES = {"encoder_norm": ("output", "none"), "decay": ("decoupled", "coupled"), "pool": ("cls", "tokens")}
NETWORK = {
    "cnn_kernels": ([65, 33, 17], "kernel sizes of the 1D-CNN, points", "paper 4.3; ECG assumed"),
    "cnn_channels": ([64, 128, 256], "channels of the 1D-CNN, the last the hidden size", "paper 4.3; ECG assumed"),
    "encoder_norm": ("output", "a layer norm at the 1D-CNN's output, or none there", "assumed"),
    "layers": (2, "Transformer layers", "paper 4.3; ECG assumed"),
    "heads": (2, "attention heads", "paper 4.3; ECG assumed"),
    "ffn": (1024, "width of the feed-forward layers", "assumed"),
    "dropout": (0.1, "dropout in the Transformer", "paper 4.3; ECG assumed"),
}
NETWORK_SHAPE = tuple(name for name in NETWORK if name != "dropout")  # which weights fit; dropout may change

MASKING = {
    "mask_probability": (0.0325, "probability that a masked span starts at a 1/128 s, at any rate", "assumed"),
    "mask_span": (20 / RATE, "seconds of a masked span; spans may overlap", "assumed"),
}

ADAM = {
    "beta1": (0.9, "Adam's first decay rate", "paper 4.3; ECG assumed"),
    "beta2": (0.999, "Adam's second decay rate", "paper 4.3; ECG assumed"),
}
# 4.3, 4.4 say no more than "L2 weight decay", in the words of BERT, the paper's [12], which decays the weights beside
# Adam, and neither norms nor biases (nor CLS, here). The other reading, an L2 term in the gradient, erases what has
# weak gradients (docs/open-questions.md).
DECAY = {"decay": ("decoupled", "L2 beside Adam, of matrices alone; or in the gradient, of all weights", "assumed")}

# The batch size is nowhere given. 64 is a common one.
PRETRAIN = {
    **NETWORK,
    "mvp_hidden": ([128], "hidden layers of the masked value predictor", "paper 4.3; ECG assumed"),
    **MASKING,
    "epochs": (500, "epochs", "paper 4.3; ECG assumed"),
    "batch_size": (64, "segments a step", "assumed"),
    "lr": (5e-4, "peak learning rate, then linear decay to 0", "paper 4.3; the 0 and ECG assumed"),
    "warmup_epochs": (30, "epochs of linear warm-up, by steps", "paper 4.3; steps and ECG assumed"),
    "weight_decay": (0.005, "L2 weight decay", "paper 4.3; ECG assumed"),
    **DECAY,
    **ADAM,
}

FINETUNE = {
    **NETWORK,
    "pool": ("cls", "the classifier reads CLS (paper 3.2), or mean and SD over the other tokens", "tokens: assumed"),
    "classifier_hidden": ([64], "hidden layers of the classifier", "paper 4.3; ECG assumed"),
    "classifier_dropout": (0.6, "dropout after each of them", "paper 4.3; place and ECG assumed"),
    "epochs": (100, "epochs", "paper 4.3; ECG assumed"),
    "batch_size": (64, "segments a step", "assumed"),
    "lr": (1e-4, "learning rate of the first epochs", "paper 4.3; ECG assumed"),
    "lr_factor": (0.65, "the learning rate is multiplied by this ...", "paper 4.3; ECG assumed"),
    "lr_every": (45, "... every so many epochs", "paper 4.3; ECG assumed"),
    "weight_decay": (1e-5, "L2 weight decay", "paper 4.3; ECG assumed"),
    **DECAY,
    **ADAM,
}

FUSE = {
    "fusion_hidden": ([64, 32], "hidden layers of the fusion network", "paper 4.4"),
    "fusion_dropout": (0.1, "dropout after each of them", "paper 4.4; place assumed"),
    "epochs": (52, "epochs", "paper 4.4"),
    "batch_size": (64, "segments a step", "assumed"),
    "lr": (1e-5, "learning rate of the first epochs", "paper 4.4"),
    "lr_factor": (0.65, "the learning rate is multiplied by this ...", "paper 4.4"),
    "lr_every": (20, "... every so many epochs", "paper 4.4"),
    "weight_decay": (1e-5, "L2 weight decay", "paper 4.4"),
    **DECAY,
    "beta1": (0.9, "Adam's first decay rate", "paper 4.4"),
    "beta2": (0.999, "Adam's second decay rate", "paper 4.4"),
}

STAGES = {"pretrain": PRETRAIN, "finetune": FINETUNE, "fuse": FUSE}

# Accuracy and F1 with the half-width of their 95 % interval, as printed in the paper's tables 1 to 3:
# (modalities, pre-trained) -> target -> ((accuracy, half-width), (F1, half-width)).
PUBLISHED = {
    (("eeg",), False): {"arousal": ((0.76, 0.0073), (0.75, 0.0083)), "valence": ((0.70, 0.0064), (0.70, 0.0068))},
    (("eeg",), True): {"arousal": ((0.81, 0.0107), (0.80, 0.0094)), "valence": ((0.77, 0.0093), (0.77, 0.0091))},
    (("ecg",), True): {"arousal": ((0.88, 0.0054), (0.87, 0.0054)), "valence": ((0.83, 0.0078), (0.83, 0.0074))},
    (("eeg", "ecg"), False): {"arousal": ((0.86, 0.0049), (0.85, 0.0051)), "valence": ((0.82, 0.0065), (0.81, 0.0068))},
    (("eeg", "ecg"), True): {"arousal": ((0.89, 0.0050), (0.89, 0.0050)), "valence": ((0.85, 0.0038), (0.85, 0.0039))},
}
# Table 4: F1 of the AMIGOS data set's own baseline, on 20 s segments and by another protocol (paper 5.4).
PUBLISHED_BASELINE = {"eeg": {"arousal": 0.577, "valence": 0.564}, "fused": {"arousal": 0.564, "valence": 0.560}}
# Two-tailed P values of the comparisons in a table are below this, by an unnamed test (paper 5.1 to 5.3; 5.3 says
# "Table 2" and means 3). Table 4 is compared in words alone.
PUBLISHED_P = {1: 1e-5, 2: 1e-3, 3: 1e-4}
