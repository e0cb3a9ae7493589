"""Runs one iteration of adversarial training; everything that updates, logs or saves is a handler."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from monai.engines.utils import IterationEvents, default_prepare_batch
from torch import Tensor

from bundle.distributed.collectives import average
from bundle.distributed.shares import own_rows, whole_shape
from bundle.engines.events import EVENT_TO_ATTR, AdversarialEvents, IterationState, MicroBatch
from bundle.engines.optimizers import ADAM_MOMENTS, PendingStep
from bundle.engines.out_of_memory import MemoryFallback
from bundle.engines.settings import total_iterations
from bundle.inferers.freed_memory import freed_memory_kept
from bundle.losses.views import draw_positions
from bundle.networks.vqgan import VQGAN
from bundle.run.rules import check


class Stateful(Protocol):
    """A part whose state checkpoints can keep; see `AdversarialTrainer.keep`."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain numbers."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restores what `state_dict` returned."""
        ...


class AdversarialTrainer(Trainer):
    """Runs the generator once per sample and iteration and fires the two update events on the result.

    The batch is split into micro-batches; handlers scale their losses by the micro-batch's share, accumulate,
    and on the last one hand over their step (`add_step`), which equals the step of the full batch. At the end
    of the iteration all steps and the codebook's update are taken together, or none of them if a handler has
    set `current.skip_steps`. Handlers add losses to `current.losses` (empty after a skipped iteration). They
    are also `state.output`, in the form from which MONAI's handlers read `loss`: [{name: value}], or None.

    Args:
        device: where to train.
        max_epochs: epochs of `epoch_length` iterations.
        train_data_loader: endless batches {"image": (B, 1, X, Y, Z)}, which `prepare_batch` takes.
        epoch_length: iterations per epoch.
        network: the generator.
        micro_batch_size: samples per forward pass.
        seed: for the slice positions.
        max_iterations: ends earlier; None = after `max_epochs`.
        amp: bf16 autocast on a GPU.
        amp_on_cpu: the same on a CPU; fast only where it multiplies bf16 matrices (AMX).
        torch_compile: whether the generator runs through `torch.compile`; names in checkpoints stay the same.
        codebook_restart_until: last iteration in which dead codes restart; None = always.
        memory_fallback: what to do when an iteration does not fit; None = stop.
        prepare_batch: called with a batch, the device and `non_blocking`; returns images in [-1, 1] on the
            device, and targets (not used, since images are their own targets).
        validator: the engine that validates; handlers find it here.
        train_handlers: ignite handlers, attached in this order.

    Attributes:
        extras: parts whose state checkpoints keep, by name; see `keep`.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        epoch_length: int,
        network: VQGAN,
        micro_batch_size: int,
        seed: int = 0,
        max_iterations: int | None = None,
        amp: bool = False,
        amp_on_cpu: bool = False,
        torch_compile: bool = False,
        codebook_restart_until: int | None = None,
        memory_fallback: MemoryFallback | None = None,
        prepare_batch: Callable = default_prepare_batch,
        validator: Evaluator | None = None,
        train_handlers: list | None = None,
    ) -> None:
        check(
            max_epochs=max_epochs,
            epoch_length=epoch_length,
            micro_batch_size=micro_batch_size,
            max_iterations=max_iterations,
            codebook_restart_until=codebook_restart_until,
        )
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            prepare_batch=prepare_batch,
            handlers=None,
            amp=False,  # the parent would make a CUDA GradScaler, which bf16 does not need
            decollate=False,
            event_names=[AdversarialEvents],
            event_to_attr=EVENT_TO_ATTR,
        )
        self.network, self.validator = network, validator
        self.reconstruct = torch.compile(network.reconstruct) if torch_compile else network.reconstruct
        self.micro_batch_size, self.seed, self.max_iterations = micro_batch_size, seed, max_iterations
        self.autocast_enabled = {"cuda": amp, "cpu": amp_on_cpu}.get(self.state.device.type, False)
        self.codebook_restart_until = codebook_restart_until
        self.memory_fallback = MemoryFallback() if memory_fallback is None else memory_fallback
        self.extras: dict[str, Stateful] = {}
        self.keep("memory_fallback", self.memory_fallback)
        self._start_over()
        self.add_event_handler(Events.ITERATION_COMPLETED, self._stop_at_max_iterations)
        self._register_handlers(train_handlers or [])
        # after the handlers, one of which may resume a run that has already come this far
        self.add_event_handler(Events.STARTED, self._stop_at_max_iterations)

    def run(self) -> None:  # type: ignore[override]  # as MONAI's
        """Trains. On a CPU the process keeps the memory of one iteration for the next."""
        with freed_memory_kept(self.state.device):
            super().run()

    def keep(self, name: str, part: Stateful) -> None:
        """Lets checkpoints keep the state of a part under a name; a file without it changes nothing."""
        self.extras[name] = part

    @property
    def total_iterations(self) -> int:
        """Returns the iterations of the whole run."""
        state = self.state
        return total_iterations(int(state.max_epochs or 1), int(state.epoch_length or 1), self.max_iterations)

    def autocast(self) -> torch.autocast:
        """Returns the autocast context for all networks; losses and the codebook leave it."""
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.autocast_enabled)

    def rehearse(self, shape: Sequence[int]) -> int:
        """Runs the run's last iteration on noise, up to its gradients, and leaves the run as it was.

        In the last iteration the gate is open if it ever is, so it needs all that the run will ever need.

        Args:
            shape: of the batch, (B, 1, X, Y, Z).

        Returns:
            bytes that Adam's moments will take in addition, from the first step on.
        """
        iteration, quantizer = self.state.iteration, self.network.quantizer
        codebook = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
        self.state.iteration = self.total_iterations
        try:
            # First, and with little memory, since ranks meet in it and it must fit on all of them.
            quantizer.prepare(
                lambda: torch.zeros(1, quantizer.embedding_dim, 2, 2, 2, device=self.state.device)
            )
            noise = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
            positions = draw_positions(noise.shape, self.seed, self.state.iteration)
            self._accumulate(noise.to(self.state.device), positions)
            return ADAM_MOMENTS * sum(step.bytes_of_weights for step in self.current.steps)
        finally:
            for step in self.current.steps:
                step.optimizer.zero_grad(set_to_none=True)
            self._start_over()
            quantizer.load_state_dict(codebook)
            self.state.iteration = iteration

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> Any:
        with self.memory_fallback.no_repeat():
            image = self.prepare_batch(batchdata, self.state.device, True)[0].as_subclass(Tensor)
        positions = own_rows(draw_positions(whole_shape(image.shape), self.seed, self.state.iteration))
        self.network.quantizer.prepare(lambda: self._repeatable(self._latent, image))
        self._repeatable(self._accumulate, image, positions)
        with self.memory_fallback.no_repeat():
            self._complete()
        self.fire_event(AdversarialEvents.GRADIENTS_COMPLETED)
        with self.memory_fallback.no_repeat():  # Adam's moments come with its first step
            self._take_steps()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return [dict(self.current.losses)] if self.current.losses else None

    def _start_over(self) -> None:
        self.current = IterationState()
        self.network.quantizer.discard()

    def _repeatable(self, attempt: Callable[..., Any], image: Tensor, *others: Tensor) -> Any:
        """Calls `attempt` for a batch until it fits into memory; ranks must not meet in it."""
        return self.memory_fallback.run(
            lambda: attempt(image, *others),
            self.state.iteration,
            len(image),
            self.micro_batch_size,
            self.state.device,
        )

    def _micro_batches(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.split(self.memory_fallback.micro_batch_size(min(len(batch), self.micro_batch_size)))

    def _accumulate(self, image: Tensor, positions: Tensor) -> None:
        """Gathers gradients, losses and codes of a batch (B, 1, X, Y, Z); no weight moves."""
        self._start_over()
        self.network.train()
        micro_images = self._micro_batches(image)
        for number, (micro, micro_positions) in enumerate(
            zip(micro_images, self._micro_batches(positions), strict=True)
        ):
            with self.autocast():
                reconstruction = self.reconstruct(micro)
            self.current.micro_batch = MicroBatch(
                image=micro,
                reconstruction=reconstruction,
                positions=micro_positions,
                share=len(micro) / len(image),
                is_first=number == 0,
                is_last=number == len(micro_images) - 1,
            )
            self.fire_event(AdversarialEvents.GENERATOR_STEP)
            self.fire_event(AdversarialEvents.DISCRIMINATOR_STEP)
        self.current.micro_batch = None  # frees the graph

    def _complete(self) -> None:
        """Turns gradients and losses into those of the whole batch, which ranks have shared."""
        for step in self.current.steps:
            step.complete()
        average(list(self.current.losses.values()))

    def _take_steps(self) -> None:
        """Moves generator, discriminators and codebook together, or none of them."""
        if self.current.skip_steps:
            self._start_over()
            return
        for step in self.current.steps:
            step.take()
        self.current.steps = []
        self.network.quantizer.update(restart=self._restarts())

    @property
    def micro_batch(self) -> MicroBatch:
        """Returns the share of the batch that an update event works on; it exists only in the two events."""
        assert self.current.micro_batch is not None
        return self.current.micro_batch

    def add_step(self, step: PendingStep) -> None:
        """Hands over an optimizer step that is to be taken at the end of the iteration."""
        self.current.steps.append(step)

    def add_losses(self, terms: dict[str, Tensor]) -> None:
        """Adds this micro-batch's detached mean losses, by name, to the iteration's."""
        share = self.micro_batch.share
        for name, value in terms.items():
            self.current.losses[name] = self.current.losses.get(name, 0.0) + share * value.detach()

    @torch.no_grad()
    def _latent(self, image: Tensor) -> Tensor:
        """Encodes a batch (B, 1, X, Y, Z): (B, E, x, y, z) float32."""
        with self.autocast():
            return torch.cat(
                [self.network.encode_latent(micro).float() for micro in self._micro_batches(image)]
            )

    def _restarts(self) -> bool:
        return self.codebook_restart_until is None or self.state.iteration <= self.codebook_restart_until

    def _stop_at_max_iterations(self) -> None:
        if self.max_iterations is not None and self.state.iteration >= self.max_iterations:
            self.terminate()
