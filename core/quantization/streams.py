"""Hidden states of whole sequences, carried from layer to layer twice: through the model as it is and as it becomes.

What a linear sees once the layers before it, and the linears before it in its own layer, are quantized is computed here
from the sequences that a calibration keeps: one layer at a time, by the family's own module, with that layer's weights
alone in memory. The unquantized stream says what a group of linears is to give, the quantized one what it has to make
it from; the difference goes into the group's weights before they are rounded (``correction``), and the rows of the
quantized stream join the recorded ones in the moments that GPTQ works with. Behind an o or a down projection the target
is the residual stream itself, so that these make up for all that has gone wrong before them, not for their own inputs'
errors alone.

The moments alone gain next to nothing; the correction does. On the embedded checkpoint (42 samples of a task, 84 other
questions and 8 other captions) ``int4-best`` errs by 0.85 +- 0.02 of what it does by recorded inputs in its logits and
by 0.88 +- 0.01 in its velocities, ``nvfp4-best`` by 0.87 and 0.88, three bits at group 128 by 0.89 and 0.86. The KL of
a small trained causal LM falls to between 0.53 and 0.64, in five formats of three and four bits and in NVFP4, on each
of three calibrations.

Nothing of it is stored: both streams follow from the sequences, the checkpoint and the finished layers, by the same
operations whether a layer was just finished or taken from a job that was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.calibration.sequences import InputSequence, bucket_of
from core.errors import CheckpointError
from core.lance.roles import Role
from core.quantization.correction import ErrorMoments, corrected
from core.quantization.gptq import Curvature
from core.quantization.groups import NORMS, Expert, LinearGroup, Structure
from core.quantization.losses import Inputs

Worth = Callable[[LinearGroup, Mapping[str, int]], dict[str, float]]
"""From a group and the number of its tokens by bucket (``task/role``) to what each token of a bucket counts."""

Weights = Mapping[str, Tensor]
"""float32 parameters of one layer, by their names below it."""

RESIDUAL = "residual"
"""The residual stream behind the attention, which the norm before gate and up reads."""

_READ_BY = {
    "qkv": "self_attn.q_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.gate_proj",
    "down": "mlp.down_proj",
    RESIDUAL: NORMS["gate_up"],
}
"""The module whose input each of these is."""

_ADDED = {"o": RESIDUAL, "down": "out"}
"""What a group adds its output to."""

Place = tuple[str, Expert]
"""Something that is seen in a layer, and the expert whose tokens it is of."""


class LayerRunner(Protocol):
    """A family's decoder layer by itself (``core.lance.layer``, ``core.huggingface.layer``)."""

    def module(self, layer: int) -> nn.Module:
        """The layer on the meta device."""
        ...

    def run(self, layer: int, weights: Weights, x: Tensor, sequence: InputSequence) -> Tensor:
        """What the layer makes of rows x [n, channels]."""
        ...


@dataclass(frozen=True)
class Corrected:
    """What to round, in view of the layers before."""

    weights: list[Tensor]
    """float32 [N, K] each."""
    share: float
    """Of the change that was fitted, as much as held on sequences that it was not fitted to."""
    curvature: Curvature


@dataclass(frozen=True)
class Held:
    """Bytes that streams hold at once, beside the layer's weights."""

    device: int
    host: int


@dataclass(frozen=True)
class Extent:
    """How many tokens a calibration's sequences have, and how many rows of each input it keeps beside them."""

    tokens: int = 0
    longest: int = 0
    buckets: int = 0
    """Most buckets that one input has rows of."""
    rows: int = 0
    """What a bucket keeps of an input at most, if its rows are not too long."""


NOTHING = Extent()


def held(shapes: Sequence[tuple[int, int]], channels: int, head_dim: int, extent: Extent) -> Held:
    """What streams of sequences hold.

    Args:
        shapes: of the stacked weights [N, K] of a layer's groups.
        channels: of the hidden states.
        head_dim: of a head of the attention.
        extent: of the sequences.
    """
    # Both streams, one of them before and behind the layer, with the rotary tables.
    carried = extent.tokens * 4 * (3 * channels + 2 * head_dim)
    # Moments of either half and their factor; cross moments, and the changes and weights they lead to.
    fitted = max(4 * (4 * k * k + 5 * n * k) for n, k in shapes)
    # Inputs, outputs and errors of the widest group, and the mask.
    running = 4 * extent.longest * (3 * max(n + k for n, k in shapes) + 2 * extent.longest)
    # What qkv reads, and the residual stream behind the attention.
    return Held(carried + fitted + running, 2 * extent.tokens * 4 * channels)


class _Reached(Exception):  # noqa: N818 - no fault: nothing behind it is wanted
    """All that was asked for has been seen."""


class Streams:
    """The two streams of one job. Layers are taken in order: ``enter``, ``correct`` for each group, ``leave``."""

    def __init__(
        self,
        runner: LayerRunner,
        structure: Structure,
        sequences: Sequence[InputSequence],
        worth: Worth,
        device: torch.device,
    ) -> None:
        self._runner = runner
        self._structure = structure
        self._worth = worth
        self._device = device
        self._exact = [one.hidden.to(device).float() for one in sequences]
        self._quantized = list(self._exact)
        self._sequences = [_placed(one, device) for one in sequences]
        channels = sequences[0].hidden.shape[1] if sequences else 0
        self._host = torch.empty(2 * sum(map(len, sequences)), channels)
        """Where ``_seen`` lies, layer after layer: pieces that come and go would leave holes in the heap that little
        else fits into.
        """
        self._seen: list[dict[Place, Tensor]] = []
        """By sequence: what qkv reads in the unquantized layer, and what the attention's output makes of the residual
        stream; on the host. All else that its groups read or add up to follows from these and from ``_exact``.
        """
        self._norms: dict[Expert, Weights] = {}
        """Parameters of the norm that lies between the residual stream and gate and up."""

    @property
    def exact(self) -> list[Tensor]:
        """Hidden states float32 [n, channels] of each sequence before the next layer of the unquantized model."""
        return self._exact

    @property
    def quantized(self) -> list[Tensor]:
        """The same of the model whose layers so far are quantized."""
        return self._quantized

    def enter(self, layer: int, weights: Weights, *, watched: bool) -> None:
        """Take the unquantized stream through a layer.

        Args:
            layer: its index.
            weights: its parameters as the checkpoint has them.
            watched: keep what its groups see, for ``correct``.

        Raises:
            CheckpointError: hidden states that are not finite.
        """
        experts = tuple(self._structure.experts) if watched else ()
        watching = [(what, expert) for expert in experts for what in ("qkv", RESIDUAL)]
        self._seen = []
        self._norms = {expert: self._norm_weights(layer, weights, expert) for expert in experts}
        passed, used = [], 0
        for index, x in enumerate(self._exact):
            found, out = self._run(layer, weights, x, index, watching)
            passed.append(out)
            self._seen.append({})
            for place, rows in found.items():
                self._seen[index][place] = self._host[used : used + len(rows)].copy_(rows)
                used += len(rows)
        self._exact = passed
        self._check(passed, layer, "of the checkpoint")

    def leave(self, layer: int, weights: Weights) -> None:
        """Take the quantized stream through a layer that is finished, with the weights that are stored of it.

        Raises:
            CheckpointError: hidden states that are not finite.
        """
        passed = []
        for index, x in enumerate(self._quantized):
            passed.append(self._run(layer, weights, x, index, ())[1])
        self._quantized = passed
        self._check(passed, layer, "as quantized")

    def close(self) -> None:
        """Let go of all hidden states, once no layer follows that needs them."""
        self._exact, self._quantized, self._sequences, self._seen = [], [], [], []
        self._host = self._host.new_empty(0)

    def correct(
        self, group: LinearGroup, current: Weights, weights: Sequence[Tensor], scale: Tensor, inputs: Inputs
    ) -> Corrected | None:
        """What a group is to be rounded from; None where the sequences hold no token that counts.

        Args:
            group: of the layer that was entered and watched last.
            current: the layer's parameters, folded, those before the group in the layer already rounded.
            weights: the group's own, float32 [N, K] each.
            scale: float32 [K], what the group's inputs were divided by in folding.
            inputs: the recorded ones, folded.
        """
        worth = self._worth(group, self._counts(group.expert))
        if not worth:
            return None
        stacked = torch.cat(list(weights))
        outputs, channels = stacked.shape
        halves = [ErrorMoments(outputs, channels, self._device) for _ in range(2)]
        added = _ADDED.get(group.kind)
        watching = [(what, group.expert) for what in (group.kind, added) if what is not None]
        numbers: Counter[str] = Counter()
        for index, sequence in enumerate(self._sequences):
            counts = self._row_weights(index, group.expert, worth)
            if not len(counts):
                continue
            # Two at a time: the branches of guidance are the same picture.
            half = numbers[sequence.task] // 2 % 2
            numbers[sequence.task] += 1
            found = self._watch(group.layer, current, index, watching)
            rows = found[group.kind, group.expert]
            wanted = self._wanted(group, index)
            lacks = (
                (wanted / scale - rows) @ stacked.t()
                if added is None
                else wanted - found[added, group.expert]
            )
            halves[half].add(rows, counts, lacks)
        target, share, moments = corrected(stacked, halves)
        # Rows of both kinds count alike; the recorded ones are of more samples, the others of this model.
        part = moments.count / (moments.count + len(inputs.sample))
        moments.rescale(part)
        moments.add(inputs.sample, inputs.sample_weight * (1 - part))
        curvature = moments.curvature(inputs.mean_sq)
        return Corrected(list(target.split([len(one) for one in weights])), share, curvature)

    def _wanted(self, group: LinearGroup, index: int) -> Tensor:
        """What a group of the unquantized layer reads of a sequence or, where it adds to the residual stream, what that
        is behind it; float32 [rows of the expert, channels].
        """
        if group.kind == "down":
            return self._exact[index][self._own(index, group.expert)]
        seen = "qkv" if group.kind == "qkv" else RESIDUAL
        rows = self._seen[index][seen, group.expert].to(self._device)
        if group.kind != "gate_up":
            return rows
        # Kept, it would take as much of the host again as the stream that it is the norm of.
        norm = self._runner.module(group.layer).get_submodule(self._norm_path(group.layer, group.expert))
        normed: Tensor = functional_call(norm, dict(self._norms[group.expert]), (rows,))
        return normed

    def _norm_path(self, layer: int, expert: Expert) -> str:
        return self.below(layer, self._structure.module(layer, NORMS["gate_up"], expert))

    def _norm_weights(self, layer: int, weights: Weights, expert: Expert) -> Weights:
        prefix = self._norm_path(layer, expert) + "."
        return {
            name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)
        }

    def _watch(
        self, layer: int, weights: Weights, index: int, watching: Sequence[Place]
    ) -> dict[Place, Tensor]:
        """What is seen of a sequence of the quantized stream in a layer, run no further than it takes."""
        return self._run(layer, weights, self._quantized[index], index, watching, enough=True)[0]

    def _run(
        self,
        layer: int,
        weights: Weights,
        x: Tensor,
        index: int,
        watching: Sequence[Place],
        *,
        enough: bool = False,
    ) -> tuple[dict[Place, Tensor], Tensor]:
        """Take one sequence through a layer.

        Args:
            layer: its index.
            weights: its parameters.
            x: the sequence's hidden states [n, channels].
            index: of the sequence.
            watching: what is to be seen.
            enough: what comes out is not wanted once all that is watched has been seen.

        Returns:
            What was seen, float32 [rows of the expert, *] each, and what came out (``x`` if it was not wanted).
        """
        module, found, handles = self._runner.module(layer), dict[Place, Tensor](), []
        present = [expert for expert in self._structure.experts if bool(self._own(index, expert).any())]
        places = [place for place in watching if place[1] in present]

        def see(place: Place, rows: Tensor) -> None:
            found[place] = rows.flatten(0, -2)
            if enough and len(found) == len(places):
                raise _Reached

        for place in places:
            if place[0] != "out":
                path = self._structure.module(layer, _READ_BY[place[0]], place[1])
                watched = module.get_submodule(self.below(layer, path))
                hook = partial(lambda place, module, given: see(place, given[0]), place)
                handles.append(watched.register_forward_pre_hook(hook))
        try:
            x = self._runner.run(layer, weights, x, self._sequences[index])
            for what, expert in places:
                if what == "out":
                    found[what, expert] = x[self._own(index, expert)]
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found, x

    def below(self, layer: int, name: str) -> str:
        """A full name of a tensor or module of a layer as it is called below the layer."""
        return name.removeprefix(f"{self._structure.prefix}{layer}.")

    def _own(self, index: int, expert: Expert) -> Tensor:
        """Which tokens of a sequence an expert takes: bool [n]."""
        sequence = self._sequences[index]
        if len(self._structure.experts) == 1:
            return torch.ones_like(sequence.roles, dtype=torch.bool)
        return sequence.is_gen if expert == "gen" else ~sequence.is_gen

    def _counts(self, expert: Expert) -> dict[str, int]:
        """An expert's tokens by bucket."""
        found: Counter[str] = Counter()
        for index, sequence in enumerate(self._sequences):
            for role in sequence.roles[self._own(index, expert)].tolist():
                found[bucket_of(sequence.task, role)] += 1
        return found

    def _row_weights(self, index: int, expert: Expert, worth: Mapping[str, float]) -> Tensor:
        """What each of an expert's tokens of a sequence counts, float32 [rows]."""
        sequence = self._sequences[index]
        table = [worth.get(bucket_of(sequence.task, role), 0.0) for role in Role]
        return torch.tensor(table, device=self._device)[sequence.roles[self._own(index, expert)].long()]

    def _check(self, passed: Sequence[Tensor], layer: int, which: str) -> None:
        for index, x in enumerate(passed):
            if not bool(x.isfinite().all()):
                raise CheckpointError(
                    f"layer {layer} {which}: the hidden states of sequence {index} ({self._sequences[index].task}) "
                    "become NaN or infinite; check the checkpoint with `checkpoints verify`, or calibrate again"
                )


def _placed(sequence: InputSequence, device: torch.device) -> InputSequence:
    """A sequence on a device, without the hidden states it begins with."""
    return InputSequence(
        sequence.task,
        # Not a part of them, which would keep them all.
        sequence.hidden.new_empty(0, sequence.hidden.shape[1]),
        sequence.cos.to(device),
        sequence.sin.to(device),
        sequence.visible.to(device),
        sequence.roles.to(device),
    )
