"""Published statements that can be checked without training, against the numbers that the authors released.

The rest lies beside the methods: the refresh rule's main table, 33.4 % and boundaries (methods/test_balanced_adam.py), the
weights of the released federated rounds (methods/test_fed_oui.py), the ranges of the controlled signal (probes/test_scale.py).
"""

import pytest
from scipy.stats import binomtest

# Mean of the best validation loss: fixed decay, AdaDecay, OUIDecay; of the released table, and recomputed from the released runs.
OUI_DECAY = {
    "EfficientNet-B0 on Cars, 1e-5": ((1.2676, 1.3397, 1.1667), (1.2676, 1.2930, 1.1667)),
    "EfficientNet-B0 on Cars, 5e-5": ((1.2019, 1.2543, 1.0594), (1.2019, 1.2071, 1.0720)),
    "ResNet-50 on Food-101, 1e-2": ((1.0333, 1.1204, 1.0336), (1.0333, 1.1204, 1.0336)),
    "ResNet-50 on Food-101, 5e-2": ((1.0241, 1.5827, 0.9976), (1.0241, 1.5827, 1.0083)),
    "DenseNet-121 on CIFAR-100, 5e-2": ((1.3703, 1.1710, 1.3337), (1.3703, 1.1710, 1.3360)),
    "DenseNet-121 on CIFAR-100, 1e-1": ((1.3465, 1.2878, 1.2752), (1.3465, 1.2878, 1.2849)),
    "MobileNetV2 on CIFAR-10, 1e-4": ((0.3884, 0.4151, 0.3622), (0.3884, 0.4018, 0.3609)),
    "MobileNetV2 on CIFAR-10, 5e-4": ((0.3487, 0.3892, 0.3298), (0.3487, 0.3591, 0.3274)),
}


@pytest.mark.parametrize("version", [0, 1], ids=["table", "recomputed"])
def test_oui_decay_is_best_in_six_of_eight_and_not_in_seven(version: int) -> None:
    best = {name: min(range(3), key=means[version].__getitem__) == 2 for name, means in OUI_DECAY.items()}
    missed = [name for name, is_best in best.items() if not is_best]
    assert missed == ["ResNet-50 on Food-101, 1e-2", "DenseNet-121 on CIFAR-100, 5e-2"]


def test_balanced_betas_are_selected_in_twelve_of_fifteen_rows() -> None:
    assert binomtest(12, 15, 1 / 5, alternative="greater").pvalue == pytest.approx(1.01e-6, rel=0.01)
    assert binomtest(9, 9, 1 / 3, alternative="greater").pvalue == pytest.approx(5.1e-5, rel=0.01)


def test_balanced_betas_are_not_selected_by_validation_loss() -> None:
    """2 of 15 rows, where chance gives 3: the released tables do not say that validation improves."""
    assert binomtest(2, 15, 1 / 5, alternative="greater").pvalue > 0.5
