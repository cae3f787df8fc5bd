"""Losses with one planted fault each, and the check that must catch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from distillkit import Attention, LossSpec, errors, losses
from distillkit.losses import checked_pair

ROWS = "(v),(v)->()"
VECTORS = "(d),(d)->()"
EXAMPLES = "(n,d),(n,e)->(n,n)"
EXAMPLE_BY_EXAMPLE = "(n,d),(n,d)->(n)"
POSITIVE = Annotated[float, Field(gt=0)]
NOT_NEGATIVE = Annotated[float, Field(ge=0)]
SHARE = Annotated[float, Field(ge=0, le=1)]
HEADS = Literal["mean"] | None


@dataclass(frozen=True)
class Fault:
    """A broken loss, and the check that sees it."""

    what: str
    function: object
    caught_by: str
    signature: str = ROWS
    tags: tuple[str, ...] = ()
    bound: float | None = None

    @property
    def spec(self):
        name = getattr(self.function, "__name__", type(self.function).__name__).lower()
        return LossSpec(
            name, self.function, signature=self.signature, tags=self.tags, bound=self.bound
        )


def kl(student, teacher, dim=-1):
    log_q, log_p = student.log_softmax(dim), teacher.log_softmax(dim)
    return (log_p.exp() * (log_p - log_q)).sum(dim)


def wrong_axis(s, t):
    log_q, log_p = s.log_softmax(0), t.log_softmax(0)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def batchmean(s, t):
    log_q = s.log_softmax(-1)
    return F.kl_div(log_q, t.softmax(-1), reduction="batchmean").expand(s.shape[:-1])


def early_mean(s, t):
    return kl(s, t).mean()


def divided_by_batch(s, t):
    return kl(s, t) / max(1, s.shape[0] if s.ndim > 1 else 1)


def swapped_direction(s, t):
    return losses.reverse_kl_divergence(s, t)


def without_t_squared(s, t, *, temperature: float = 1.0):
    return losses.kl_divergence(s / temperature, t / temperature)


def mean_over_classes(s, t, *, where=None):
    return losses.kl_divergence(s, t, where=where) / s.shape[-1]


def where_ignored(s, t, *, where=None):
    return losses.kl_divergence(s, t)


def where_after_softmax(s, t, *, where=None):
    log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return (terms if where is None else torch.where(where, terms, 0)).sum(-1)


def mask_on_keys_only(s, t):
    return losses.attention_kl(s.with_rows(None), t.with_rows(None))


def averaged_over_padded_rows(s, t):
    return losses.attention_kl(s, t) / s.shape[2]


def keys_leak(s, t):
    return losses.attention_kl(*(Attention(x.query, x.key, rows=x.rows) for x in (s, t)))


def broadcast_heads(s, t):
    q, p = (x.probabilities() for x in (s, t))
    return (p - q).square().sum(-1)


def detached_student(s, t):
    return kl(s.detach(), t) + 0 * s.sum(-1)


def detached_key(s, t):
    student = Attention(s.query, s.key.detach(), scale=s.scale, mask=s.mask, rows=s.rows)
    return losses.attention_kl(student, t)


class UntrainedScale(nn.Module):
    """A learnable weight that the loss reads without gradient."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, s, t):
        return (s - t).square().mean(-1) * self.log_scale.detach().exp()


def root_at_zero(s, t):
    return (s - t).square().sum(-1).sqrt()


def norm_of_zero(s, t):
    return 1 - (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1))


def minus_infinity_times_zero(s, t):
    return F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1)


def epsilon_in_the_logarithm(s, t):
    q, p = s.softmax(-1), t.softmax(-1)
    return (p * ((p + 1e-8).log() - (q + 1e-8).log())).sum(-1)


def logarithm_of_softmax(s, t):
    q, p = s.softmax(-1), t.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def half_precision_overflow(s, t):
    return (
        (s - t).square().mean(-1).float() if s.dtype != torch.float64 else (s - t).square().mean(-1)
    )


def half_precision_softmax(s, t):
    value = kl(s, t)
    return value if s.dtype == torch.float64 else value.float()


def stays_in_half_precision(s, t):
    return (s - t).square().mean(-1)


def float64_rounded(s, t):
    return kl(s.float(), t.float())


def distances_by_expansion(s, t):
    def distances(x):
        x = x if x.dtype == torch.float64 else x.float()
        squares = x.square().sum(-1)
        return squares[..., :, None] + squares[..., None, :] - 2 * x @ x.mT

    return (distances(s).clamp_min(1e-12).sqrt() - distances(t).clamp_min(1e-12).sqrt()).square()


def nan_hidden(s, t):
    return (s - t).square().mean(-1).nan_to_num(0.0)


def in_place(s, t):
    s -= s.mean(-1, keepdim=True)
    return (s - t).square().mean(-1)


class RunningMean:
    """A statistic that an earlier call leaves behind."""

    def __init__(self):
        self.mean = 1.0

    def __call__(self, student, teacher):
        value = (student - teacher).square().mean(-1)
        self.mean = 0.9 * self.mean + 0.1 * float(value.detach().sum())
        return value / self.mean


def dropout(s, t):
    return F.dropout(s - t, 0.5).square().mean(-1)


def flattens_a_view(s, t):
    d = s.shape[-1]
    return (s.view(-1, d) - t.view(-1, d)).square().mean(-1).view(s.shape[:-1])


def without_absolute_value(s, t):
    return (s - t).sum(-1)


def unnormalised_student(s, t):
    log_p = t.log_softmax(-1)
    return (log_p.exp() * (log_p - s)).sum(-1)


def squared_lengths_differ(s, t):
    s, t = checked_pair("squared_lengths_differ", VECTORS, s, t)
    return (s.square().sum(-1) - t.square().sum(-1)).square()


def mixture_reversed(s, t):
    log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
    log_m = torch.stack([log_q, log_p]).logsumexp(0) - 0.6931471805599453
    return (log_m.exp() * (2 * log_m - log_p - log_q)).sum(-1) / 2


def asymmetric(s, t):
    return losses.jensen_shannon_divergence(s, t, beta=0.3)


def logits_compared(s, t):
    return (s - t).square().mean(-1)


def epsilon_in_the_norm(s, t):
    return 1 - (s * t).sum(-1) / ((s.norm(dim=-1) + 1e-6) * (t.norm(dim=-1) + 1e-6))


def position_weighted(s, t):
    return ((s - t).square() * torch.arange(1, s.shape[-1] + 1)).mean(-1)


def weighted_by_place(s, t):
    return (s - t).square().mean(-1) * torch.arange(1, s.shape[-2] + 1, device=s.device)


def filled_in_place(s, t):
    value = torch.zeros(s.shape[:-1], dtype=s.dtype, device=s.device)
    return value.copy_((s - t).square().mean(-1))


def flattened_gram(s, t):
    def gram(x):
        rows = x.flatten(0, -2)
        return F.normalize(rows @ rows.mT, dim=-1)

    n = s.shape[-2]
    return (gram(s) - gram(t)).square()[..., :n].reshape(*s.shape[:-1], -1)[..., :n]


def variance_of_one(s, t):
    return ((s - t) / s.std(-2, keepdim=True)).square().mean(-1)


def largest_of_none(s, t):
    return (s - t).square().mean(-1) / s.detach().abs().max().clamp_min(1) ** 0


class _WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x


def hand_written_gradient(s, t):
    return _WrongSlope.apply(s - t).mean(-1)


def kink_called_smooth(s, t):
    return (s - t).abs().mean(-1)


def on_the_processor(s, t):
    return ((s - t).square() * torch.ones(s.shape[-1], dtype=s.dtype)).mean(-1)


def read_as_a_number(s, t):
    scale = t.detach().abs().sum().item() + 1
    return (s - t).square().mean(-1) * scale / scale


def branches_on_values(s, t):
    difference = s - t if (s > t).any() else t - s
    return difference.square().mean(-1)


def broadcasts(s, t):
    return (s - t).square().mean(-1)


def error_without_a_name(s, t, *, temperature: POSITIVE = 1.0):
    if not temperature > 0:
        raise errors.OptionError("out of range")
    return losses.kl_divergence(s, t, temperature=temperature)


def option_checked(name, value, low, high=float("inf")):
    if not low <= value <= high:
        raise errors.OptionError(f"{name} lies in [{low}, {high}]; got {value}")


def part_without_t_squared(s, t, *, temperature: POSITIVE = 1.0, sharpness: NOT_NEGATIVE = 0.0):
    option_checked("sharpness", sharpness, 0)
    value = losses.kl_divergence(s, t, temperature=temperature)
    return value + sharpness * losses.kl_divergence(s / temperature, t / temperature)


def temperature_from_a_half(s, t, *, temperature: POSITIVE = 1.0):
    if not temperature > 0:
        raise errors.OptionError(f"temperature is positive; got {temperature}")
    return losses.kl_divergence(s, t, temperature=max(temperature, 0.5))


def centred_over_the_batch(s, t, *, centred: SHARE = 0.0):
    s, t = checked_pair("centred_over_the_batch", VECTORS, s, t)
    option_checked("centred", centred, 0, 1)
    moved = s - centred * s.mean(0) if centred else s
    return (moved - t).square().mean(-1)


def root_by_an_option(s, t, *, power=2.0):
    s, t = checked_pair("root_by_an_option", VECTORS, s, t)
    return (s - t).abs().pow(power).mean(-1)


def refuses_what_it_allows(s, t, *, weight: SHARE = 1.0):
    s, t = checked_pair("refuses_what_it_allows", VECTORS, s, t)
    if not 0 < weight <= 1:
        raise errors.OptionError(f"weight lies between 0 and 1; got {weight}")
    return weight * (s - t).square().mean(-1)


def default_out_of_bounds(s, t, *, weight: SHARE = 1.5):
    s, t = checked_pair("default_out_of_bounds", VECTORS, s, t)
    option_checked("weight", weight, 0, 1.5)
    return weight * (s - t).square().mean(-1)


def averaged_values(s, t, *, heads: HEADS = None):
    value = losses.attention_kl(s, t)
    return value if heads is None else value.mean(1)


def nan_lost_in_the_average(s, t, *, heads: HEADS = None):
    value = losses.attention_kl(s, t, heads=heads)
    return value if heads is None else value.nan_to_num(0.0)


def squares_by_expansion(s, t):
    s, t = checked_pair("squares_by_expansion", VECTORS, s, t)
    return s.square().sum(-1) + t.square().sum(-1) - 2 * (s * t).sum(-1)


def squares_in_two_orders(s, t):
    s, t = checked_pair("squares_in_two_orders", EXAMPLE_BY_EXAMPLE, s, t)
    products = (s * t).flip(-1).cumsum(-1)[..., -1]
    return (s.square().sum(-1) + t.square().sum(-1) - 2 * products).clamp_min(0)


def logarithm_cut_off(s, t):
    s, t = checked_pair("logarithm_cut_off", ROWS, s, t)
    value = losses.kl_divergence(s, t)
    log_q, log_p = s.log_softmax(-1).clamp_min(-50), t.log_softmax(-1)
    safe = torch.where(log_p > -torch.inf, log_p - log_q, 0)
    return torch.where(value.isfinite(), (log_p.exp() * safe).sum(-1), value)


class NaNInTheWeight(nn.Module):
    """A learnable weight, shared by the entries that differ, whose gradient is NaN without any."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, s, t):
        s, t = checked_pair("nan_in_the_weight", VECTORS, s, t)
        differing = (s != t).sum(-1)
        shared = torch.where(differing > 0, self.log_scale / differing, 0).to(s.dtype)
        return (s - t).square().mean(-1) * shared.exp()


def error_without_shapes(s, t):
    if s.shape != t.shape or not s.is_floating_point():
        raise ValueError("student and teacher do not fit, or are integers")
    return losses.mse(s, t)


def raises(s, t):
    raise errors.ShapeError("no")


def returns_a_pair(s, t):
    return kl(s, t), s


FAULTS = (
    Fault("softmax over the batch", wrong_axis, "positions_independent"),
    Fault("`batchmean` of `F.kl_div`", batchmean, "positions_independent"),
    Fault("mean taken inside the loss", early_mean, "shape"),
    Fault("divided by the size of the batch", divided_by_batch, "split_invariance"),
    Fault("KL in the wrong direction", swapped_direction, "mass_covering", tags=("mass_covering",)),
    Fault("forward KL called mode-seeking", losses.kl_divergence, "mode_seeking", tags=("mode_seeking",)),
    Fault("no T²", without_t_squared, "temperature_squared", tags=("temperature_squared",)),
    Fault("mean over classes", mean_over_classes, "where"),
    Fault("`where` ignored", where_ignored, "where"),
    Fault("`where` applied after the softmax", where_after_softmax, "where"),
    Fault("mask on keys only", mask_on_keys_only, "padding", "attention"),
    Fault("averaged over padded rows", averaged_over_padded_rows, "padding", "attention"),
    Fault("masked keys take part in the softmax", keys_leak, "padding", "attention"),
    Fault("one head broadcast over several", broadcast_heads, "bad_shapes", "attention"),
    Fault("student detached", detached_student, "gradient_reaches_student"),
    Fault("student's keys detached", detached_key, "gradient_reaches_student", "attention"),
    Fault("learnable parameter without gradient", UntrainedScale(), "gradient_reaches_student"),
    Fault("square root at 0", root_at_zero, "finite_gradient", VECTORS),
    Fault("division by the norm of a zero vector", norm_of_zero, "finite_gradient", VECTORS),
    Fault("-inf · 0", minus_infinity_times_zero, "minus_infinity", tags=("logits",)),
    Fault("eps inside the logarithm", epsilon_in_the_logarithm, "mass_covering", tags=("mass_covering",)),
    Fault("logarithm of a softmax", logarithm_of_softmax, "finite_gradient"),
    Fault("squares overflow in float16", half_precision_overflow, "low_precision", VECTORS),
    Fault("softmax in half precision", half_precision_softmax, "low_precision"),
    Fault("value in half precision", stays_in_half_precision, "low_precision", VECTORS),
    Fault("float64 rounded to float32", float64_rounded, "shape"),
    Fault("distances as a² + b² - 2ab", distances_by_expansion, "low_precision", EXAMPLES),
    Fault("NaN replaced by 0", nan_hidden, "nan_reaches_value", VECTORS),
    Fault("writes to its input", in_place, "inputs_unchanged", VECTORS),
    Fault("statistic left over from earlier calls", RunningMean(), "same_twice", VECTORS),
    Fault("random numbers", dropout, "same_twice", VECTORS),
    Fault("`view` of what is not contiguous", flattens_a_view, "memory_layout", VECTORS),
    Fault("no absolute value", without_absolute_value, "nonnegative", VECTORS, ("nonnegative",)),
    Fault("student not normalised", unnormalised_student, "shift_invariant", tags=("shift_invariant",)),
    Fault("logits compared, not distributions", logits_compared, "shift_invariant", tags=("shift_invariant",)),
    Fault("JSD from the mixture's side", mixture_reversed, "bounded", bound=0.6932),
    Fault("unequal weights called symmetric", asymmetric, "symmetric", tags=("symmetric",)),
    Fault("not 0 at identity", losses.soft_cross_entropy, "zero_at_identity", tags=("zero_at_identity",)),
    Fault("rounding at identity", losses.jensen_shannon_divergence, "exactly_zero_at_identity", tags=("exactly_zero_at_identity",)),
    Fault("written into a new tensor", filled_in_place, "functional", VECTORS, ("functional",)),
    Fault("eps added to the norm", epsilon_in_the_norm, "scale_invariant", VECTORS, ("scale_invariant",)),
    Fault("depends on the order of classes", position_weighted, "permutation_invariant", VECTORS, ("permutation_invariant",)),
    Fault("an example weighted by its place", weighted_by_place, "permutation", "(n,d),(n,d)->(n)"),
    Fault("Gram matrix over several batches", flattened_gram, "positions_independent", EXAMPLES),
    Fault("standard deviation of one example", variance_of_one, "edge_sizes", "(n,d),(n,d)->(n)"),
    Fault("maximum of an empty batch", largest_of_none, "edge_sizes", VECTORS),
    Fault("wrong gradient written by hand", hand_written_gradient, "gradcheck", VECTORS),
    Fault("kink at equality", kink_called_smooth, "smooth", VECTORS, ("smooth",)),
    Fault("constant on the CPU", on_the_processor, "device", VECTORS),
    Fault("value read with `item()`", read_as_a_number, "device", VECTORS),
    Fault("branch on values", branches_on_values, "compiles", VECTORS),
    Fault("batches of different size broadcast", broadcasts, "bad_shapes", VECTORS),
    Fault("an option's error that does not name it", error_without_a_name, "option_bounds"),
    Fault("a default outside of its own bounds", default_out_of_bounds, "option_bounds", VECTORS),
    Fault("a bound that the function refuses", refuses_what_it_allows, "shape", VECTORS),
    Fault("no T² in a part that is off by default", part_without_t_squared, "temperature_squared", tags=("temperature_squared",)),
    Fault("temperatures below 1/2 taken for 1/2", temperature_from_a_half, "temperature_squared", tags=("temperature_squared",)),
    Fault("centred over the batch where an option asks for it", centred_over_the_batch, "positions_independent", VECTORS),
    Fault("a power below 1 at 0, by an option without bounds", root_by_an_option, "finite_gradient", VECTORS),
    Fault("`heads=\"mean\"` without an axis of heads", averaged_values, "shape", "attention"),
    Fault("NaN lost in the average over heads", nan_lost_in_the_average, "nan_reaches_value", "attention"),
    Fault("negative near equality in float32", squares_by_expansion, "nonnegative", VECTORS, ("nonnegative",)),
    Fault("not 0 at identity for large inputs in float32", squares_in_two_orders, "zero_at_identity", EXAMPLE_BY_EXAMPLE, ("zero_at_identity",)),
    Fault("logarithm cut off far out", logarithm_cut_off, "mass_covering", tags=("mass_covering",)),
    Fault("NaN in the gradient of a parameter", NaNInTheWeight(), "finite_gradient", VECTORS),
    Fault("an error that prints no shapes", error_without_shapes, "bad_shapes", VECTORS),
    Fault("raises on good input", raises, "shape"),
    Fault("returns more than a tensor", returns_a_pair, "shape"),
)  # fmt: skip
