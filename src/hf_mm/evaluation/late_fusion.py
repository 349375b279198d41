"""Late fusion: pictures and questions as vectors made apart, joined by a small network at the end.

What models that read both together are to be compared with: Kiela et al. 2019, "Supervised Multimodal
Bitransformers for Classifying Images and Text", section 4.2 (https://arxiv.org/abs/1909.02950).

Shapes: N questions, D width of the vectors of pictures, E width of those of questions.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["LateFusion"]


class LateFusion:
    """Answers from the vectors of a picture and a question, side by side, by one hidden layer.

    Needs scikit-learn, whose `MLPClassifier` it is, with Adam.

    Args:
        hidden: Width of the hidden layer.
        epochs: Passes over the questions.
        seed: Of the first weights and of the order.
    """

    def __init__(self, hidden: int = 256, epochs: int = 30, seed: int = 0) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.seed = seed

    def fit(self, images: Tensor, questions: Tensor, answers: Sequence[str]) -> "LateFusion":
        """Learn from (N, D) vectors of pictures, (N, E) of questions and N answers; returns itself.

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: Numbers of rows differ, or a vector has a number that is not finite.
        """
        try:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.neural_network import MLPClassifier
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
        except ImportError as error:
            raise ImportError("`LateFusion` needs scikit-learn: pip install 'hf-mm[eval]'.") from error
        vectors = _joined(images, questions)
        if len(answers) != len(vectors):
            raise ValueError(f"{len(answers)} answers for {len(vectors)} questions; give one for each.")
        network = MLPClassifier(
            (self.hidden,),
            max_iter=self.epochs,
            # Exactly so many passes: none ends early because the loss has hardly changed.
            n_iter_no_change=self.epochs,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is what was asked for
            self.model = make_pipeline(StandardScaler(), network).fit(vectors, np.asarray(answers))
        return self

    def predict(self, images: Tensor, questions: Tensor) -> list[str]:
        """The answer to each question, from (N, D) and (N, E) vectors.

        Raises:
            ValueError: As `fit`; or it has not been called.
        """
        if not hasattr(self, "model"):
            raise ValueError("`LateFusion` has learnt nothing yet; call `fit` first.")
        return self.model.predict(_joined(images, questions)).tolist()


def _joined(images: Tensor, questions: Tensor) -> np.ndarray:
    """(N, D + E)."""
    if images.ndim != 2 or questions.ndim != 2 or len(images) != len(questions):
        raise ValueError(
            f"`images` and `questions` must be (questions, width) with as many rows, got "
            f"{tuple(images.shape)} and {tuple(questions.shape)}; repeat the vector of a picture for each "
            "of its questions."
        )
    both = torch.cat((images.float(), questions.float()), dim=1).cpu()
    if not both.isfinite().all():
        row = int((~both.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"Row {row} of `images` or `questions` has NaN or infinity; look at its picture.")
    return both.numpy()
