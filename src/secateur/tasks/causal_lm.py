"""The task of predicting the next token: cross-entropy, averaged over each sequence."""

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.modes import widened
from secateur.core.stack import find_stack
from secateur.core.task import Batch, Split, Task
from secateur.tasks.divergence import softened_divergence

# What a position's target is where nothing is to be predicted; torch's own default.
IGNORED = -100
# Tokens that are passed through a model at once where nobody says.
_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Sequences:
    """Token numbers in sequences of one length, and what is to be predicted at each position.

    Attributes:
        ids: the tokens.
        targets: the next token at each position, -100 where nothing is to be predicted: at the last
            position, and where another document begins.
    """

    ids: Int[Tensor, "s t"]
    targets: Int[Tensor, "s t"]

    @classmethod
    def of(cls, ids: Int[Tensor, "s t"], first: Tensor | None = None) -> "Sequences":
        """Let each token be predicted from those before it in its sequence.

        Args:
            ids: the tokens.
            first: likewise shaped, True where a token is the first of a document (or padding), which
                nothing predicts.

        Returns:
            The sequences.
        """
        targets = torch.full_like(ids, IGNORED)
        targets[:, :-1] = ids[:, 1:]
        if first is not None:
            targets[:, :-1][first[:, 1:]] = IGNORED
        return cls(ids, targets)

    def __len__(self) -> int:
        """Count the sequences."""
        return self.ids.shape[0]


@dataclass(frozen=True, eq=False)
class CausalLM(Task):
    """Sequences of tokens, each predicted from those before it; samples are sequences, positions tokens.

    With z_t the logits at position t of a sequence, y_t the next token and T the positions that count,

        loss = -(1 / T) sum_t log softmax(z_t)[y_t],    nats a token

    Attributes:
        calibration: what gradients and curvature are estimated from.
        evaluation: what reported numbers are measured on.
        disjoint: False where some text is in both parts, so that reported numbers flatter.
        origin: where the text comes from, for messages.
        tokenizer: what made tokens of it, saved beside a pruned model; None where nobody said.
    """

    calibration: Sequences
    evaluation: Sequences
    disjoint: bool = True  # type: ignore[reportIncompatibleMethodOverride]
    origin: str = "the text"
    tokenizer: Any = None

    def __post_init__(self) -> None:
        """Check that there is something to predict.

        Raises:
            SecateurError: there are no sequences, or one has nothing to predict.
        """
        for split in ("calibration", "evaluation"):
            part = self._part(split)
            if len(part) == 0:
                raise SecateurError(f"{self.origin} gives no {split} sequences: give more text.")
            empty = (part.targets == IGNORED).all(1).nonzero().flatten()
            if empty.numel():
                raise SecateurError(
                    f"in {split} sequence {int(empty[0])} of {self.origin} there is nothing to predict: it "
                    "needs at least two tokens of one document."
                )

    @classmethod
    def from_ids(
        cls, ids: Int[Tensor, "s t"], *, evaluation: Int[Tensor, "e u"] | None = None, tokenizer: Any = None
    ) -> "CausalLM":
        """Take sequences of token numbers.

        Args:
            ids: one row a sequence.
            evaluation: likewise, to evaluate on; None: the last fifth of the sequences, if there are
                five, else the same ones.
            tokenizer: saved beside a pruned model.

        Returns:
            The task.
        """
        fifth = len(ids) // 5
        if evaluation is not None:
            return cls(Sequences.of(ids), Sequences.of(evaluation), tokenizer=tokenizer)
        if fifth:
            return cls(Sequences.of(ids[:-fifth]), Sequences.of(ids[-fifth:]), tokenizer=tokenizer)
        return cls(Sequences.of(ids), Sequences.of(ids), disjoint=False, tokenizer=tokenizer)

    def _part(self, split: str) -> Sequences:
        return self.calibration if split == "calibration" else self.evaluation

    @property
    def ordered(self) -> bool:
        """Neighbouring sequences may be of one document."""
        return True

    @property
    def per_pass(self) -> int:
        """As many sequences as hold 4,096 tokens."""
        return max(1, _TOKENS // self.calibration.ids.shape[1])

    def prunable(self, model: nn.Module) -> tuple[str, ...]:
        """Name the layers inside decoder layers: neither embeddings nor what comes before or after.

        Args:
            model: the network.

        Returns:
            A glob pattern.
        """
        stack = find_stack(model)
        return ("*",) if stack is None else (f"{stack[0]}.*",)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that the tokens do not fit.

        Args:
            model: the network.

        Raises:
            SecateurError: it is an encoder-decoder, or has too few embeddings or positions.
        """
        config = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise SecateurError(
                f"{type(model).__name__} is an encoder-decoder: Secateur prunes decoder-only language "
                "models, such as Llama, Mistral, Qwen, OPT, GPT-2, Pythia, Gemma and Phi."
            )
        embed = getattr(model, "get_input_embeddings", lambda: None)()
        rows = getattr(embed, "num_embeddings", None)
        highest = max(int(part.ids.max()) for part in (self.calibration, self.evaluation))
        lowest = min(int(part.ids.min()) for part in (self.calibration, self.evaluation))
        if rows is not None and (highest >= rows or lowest < 0):
            raise SecateurError(
                f"the tokens of {self.origin} have numbers from {lowest} to {highest}, but the model has "
                f"{rows} embeddings: the tokenizer is not the model's; give the one it was trained with."
            )
        longest = getattr(config, "max_position_embeddings", None)
        length = max(part.ids.shape[1] for part in (self.calibration, self.evaluation))
        if isinstance(longest, int) and length > longest:
            raise SecateurError(
                f"sequences have {length} tokens, but the model has {longest} positions: lower context to "
                f"{longest}."
            )

    def size(self, split: Split) -> int:
        """Count the sequences of a split."""
        return len(self._part(split))

    def batch(self, split: Split, index: Int[Tensor, " s"], device: torch.device) -> Batch:
        """Fetch sequences.

        Args:
            split: where from.
            index: which.
            device: where to.

        Returns:
            Tokens [S, T] and targets [S, T].
        """
        part = self._part(split)
        return Batch(part.ids[index].to(device), part.targets[index].to(device), index)

    def forward(self, model: nn.Module, batch: Batch) -> Float[Tensor, "s t v"]:
        """Run the model.

        Args:
            model: called with the tokens; it returns logits, or an object that has them as `.logits`.
            batch: the sequences.

        Returns:
            The logits.

        Raises:
            SecateurError: the model cannot be run on tokens, or gives no logits for each position.
        """
        tokens = batch.inputs.long()
        try:
            returned = model(tokens, use_cache=False) if hasattr(model, "config") else model(tokens)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            self._misfit(error)
        logits = returned if isinstance(returned, Tensor) else getattr(returned, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            raise SecateurError(
                f"{type(model).__name__} gives no logits for each position: a causal language model is "
                "needed, as AutoModelForCausalLM loads it."
            )
        return logits

    def _misfit(self, error: Exception) -> NoReturn:
        """Say that the model does not take the tokens; a fault of the device is passed on as it is."""
        if isinstance(error, SecateurError | torch.OutOfMemoryError) or "CUDA error" in str(error):
            raise error
        if "allocate memory" in str(error):
            raise SecateurError(
                "there is not enough memory for a pass: lower it with memory (--memory 8GB, say), or take a "
                "smaller context."
            ) from error
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SecateurError(
            f"the model cannot be run on {self.origin} ({said}): check that it is a causal language model, "
            "and that the tokenizer is its own."
        ) from error

    def losses(self, outputs: Float[Tensor, "s t v"], targets: Int[Tensor, "s t"]) -> Float[Tensor, " s"]:
        """Average the cross-entropy over the positions of each sequence.

        Args:
            outputs: the logits.
            targets: the next tokens, -100 where nothing counts.

        Returns:
            Nats a token.
        """
        logits = widened(outputs)
        each = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.long().flatten(), reduction="none", ignore_index=IGNORED
        )
        return each.reshape(targets.shape).sum(1) / (targets != IGNORED).sum(1)

    def divergences(
        self,
        outputs: Float[Tensor, "s t v"],
        trained: Float[Tensor, "s t v"],
        targets: Int[Tensor, "s t"],
        temperature: float,
    ) -> Float[Tensor, " s"]:
        """Average T^2 KL(softmax(trained / T) || softmax(outputs / T)) over the positions that count.

        Args:
            outputs: the logits.
            trained: those of the trained network.
            targets: the next tokens, -100 where nothing counts.
            temperature: T.

        Returns:
            Nats a token.
        """
        counts = targets != IGNORED
        return (softened_divergence(outputs, trained, temperature) * counts).sum(1) / counts.sum(1)

    def sample_targets(
        self, outputs: Float[Tensor, "s t v"], generator: torch.Generator
    ) -> Int[Tensor, "s t"]:
        """Draw the next token at every position from softmax(logits), by inverting the distribution function.

        Args:
            outputs: the logits.
            generator: where the randomness comes from, on the CPU.

        Returns:
            The tokens, on the outputs' device.
        """
        uniform = torch.rand(outputs.shape[:2], generator=generator).to(outputs.device)
        steps = outputs.detach().float().softmax(-1).cumsum_(-1)
        at = torch.searchsorted(steps, (uniform * steps[..., -1])[..., None], right=True)
        return at.squeeze(-1).clamp_(max=outputs.shape[-1] - 1)

    def redraw(
        self, outputs: Float[Tensor, "s t v"], targets: Int[Tensor, "s t"], generator: torch.Generator
    ) -> Int[Tensor, "s t"]:
        """Draw next tokens, and leave alone the positions that count for nothing."""
        return torch.where(targets == IGNORED, targets, self.sample_targets(outputs, generator).to(targets))

    def loss_hessian_factors(self, outputs: Float[Tensor, "s t v"]) -> Float[Tensor, "r s t v"]:
        """Refuse: there would be as many factors as positions times tokens.

        Args:
            outputs: the logits.

        Raises:
            SecateurError: always.
        """
        raise SecateurError(
            "the exact Gauss-Newton matrix of a language model has a row for each position and token: use "
            "the curvature fisher, which draws some of them."
        )

    def metrics(self, outputs: Float[Tensor, "s t v"], targets: Int[Tensor, "s t"]) -> dict[str, float]:
        """Sum loss and right answers.

        Args:
            outputs: the logits.
            targets: the next tokens.

        Returns:
            ``"loss"``, nats a token, and ``"accuracy"``, the fraction of next tokens that are the likeliest.
        """
        counted = targets != IGNORED
        right = ((outputs.argmax(-1) == targets) & counted).sum(1) / counted.sum(1)
        return {
            "loss": float(self.losses(outputs, targets).double().sum()),
            "accuracy": float(right.double().sum()),
        }

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Give the perplexity, exp(loss)."""
        return {"perplexity": float(torch.tensor(means["loss"], dtype=torch.float64).exp())}
