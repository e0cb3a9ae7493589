"""Decides from which iteration on the discriminators train and act on the generator."""

from ignite.engine import Engine

from bundle.run.rules import check


class IterationGate:
    """Opens at a number of iterations, which checkpoints keep; it looks at nothing else.

    With start s and p pre-training iterations the discriminators train from s + 1 on, and the generator's
    gated terms open at s + p + 1, rising to full weight over `ramp_iterations`.

    Args:
        start: s, the last iteration of the warm-up.
        pretrain_iterations: p, iterations in which the discriminators train while the generator ignores them.
        ramp_iterations: iterations over which the adversarial terms rise linearly; 0 = at once.
    """

    def __init__(self, start: int, pretrain_iterations: int = 0, ramp_iterations: int = 0) -> None:
        check(
            discriminator_iter_start=start,
            discriminator_pretrain_iters=pretrain_iterations,
            adversarial_ramp_iters=ramp_iterations,
        )
        self.start = start
        self.pretrain_iterations = pretrain_iterations
        self.ramp_iterations = ramp_iterations

    def __call__(self, engine: Engine, iteration: int) -> bool:
        """Tells, as an event filter of ignite, whether the discriminators train in this iteration."""
        return iteration > self.start

    def generator_share(self, iteration: int) -> float:
        """Returns the share of the gated terms' weights in this iteration: 0 below the gate, then up to 1."""
        open_for = iteration - self.start - self.pretrain_iterations
        if open_for <= 0:
            return 0.0
        return min(1.0, open_for / max(1, self.ramp_iterations))
