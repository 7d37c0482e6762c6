"""The estimator's expectation and variance over everything that its sampler can draw.

A batch of G draws is a multiset, since the order of rows does not matter. Draws that differ in nothing that the *other* draws' coefficients
see (the same reward; or reward and length) form a class, and only the composition of the rest by class matters:

    E[ĝ] = Σ_n P(n) Σ_c n_c E[v | c, n],      tr Var[ĝ] = E|ĝ|² − |E ĝ|²,    E|ĝ|² = Σ_n P(n) (|E[ĝ|n]|² + Σ_c n_c tr Var[v | c, n])

with n the composition, v what one draw adds, and draws of one class independent given n. That the classes are fine enough is checked on
random groups; the finest (every outcome its own class) is a plain enumeration. Where there are too many compositions, batches are sampled
instead, and the result has an error bar. Axes: M units, C classes, G draws, K groups, D weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from quatrain.experiments.diagnose.subject import APART, EDITED, TOGETHER, Subject

MOST = 100_000  # rows that an exact enumeration may take (groups × draws)
CHUNK = 20_000  # rows evaluated at once
SLOWER = 12  # how much a batch of its own costs, in batches evaluated together
SAMPLED = 3000  # groups drawn where enumeration is not feasible
CLOSE = 1e-9


@dataclass(frozen=True)
class Moments:
    """Of the gradient ĝ of one batch.

    mean      [D] E[ĝ];  terms  term → [D].
    variance  tr Cov[ĝ].
    tokens    sampled actions per batch, those of thrown-away groups included.
    error     [D] standard error of ``mean``; None where it is exact.   errors  the same, term by term.
    count     compositions enumerated, or batches sampled.
    classes   how the enumeration told draws apart.
    """

    mean: Tensor
    terms: dict[str, Tensor]
    variance: float
    tokens: float
    error: Tensor | None
    count: int
    classes: str = ""
    errors: Mapping[str, Tensor | None] = field(default_factory=dict)

    @property
    def how(self) -> str:
        """In words: how it was computed."""
        return f"sampled: {self.count:,} batches" if self.error is not None else f"exact: {self.count:,} compositions by {self.classes}"


# How draws may be told apart: name → [M] class of every unit, coarsest first.
SIGNATURES: dict[str, Callable[[Subject, Tensor], Tensor]] = {
    "reward": lambda subject, units: _classes(subject, units, ()),
    "reward and question": lambda subject, units: _classes(subject, units, ("question",)),
    "reward and length": lambda subject, units: _classes(subject, units, ("length",)),
    "outcome": lambda subject, units: torch.arange(len(units)),
}


def moments(subject: Subject, seed: int = 0, most: int = MOST, sampled: int = SAMPLED) -> Moments:
    """Exact where it is feasible, else over ``sampled`` random batches."""
    mode = mode_of(subject, seed)
    most, sampled = (most, sampled) if mode == TOGETHER else (most // SLOWER, sampled // 4)
    for name, signature in SIGNATURES.items():
        parts = [(share, units, p, signature(subject, units)) for share, units, p in _questions(subject)]
        if sum(_rows(subject.draws, classes) for _, _, _, classes in parts) > most:
            break
        if all(_fine_enough(subject, units, classes, mode, seed) for _, units, _, classes in parts):
            return _enumerated(subject, parts, mode, name)
    return _sampled(subject, mode, seed, sampled)


def mode_of(subject: Subject, seed: int = 0, count: int = 8) -> str:
    """How thousands of groups may be computed: TOGETHER if the gradient of several is the mean of theirs; see Subject.gradients."""
    index = random_groups(subject, 8 * count, seed, varied=True)
    index = index[subject.kept(index)][:count]
    if len(index) < 2:
        return TOGETHER
    apart = subject.gradients(index, APART)
    for mode in (TOGETHER, EDITED):
        found = subject.gradients(index, mode)
        if all(_same(found[name][part], apart[name][part]) for name in apart for part in (0, 1)):
            return mode
    return APART


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * max(float(b.abs().max()), 1e-12)) if a.numel() else True


# -- enumeration -------------------------------------------------------------------------------------------------------
def _questions(subject: Subject) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(share of all batches, units [M], their probabilities [M]) for what one batch draws from: a question, or all of them."""
    units, chance = subject.drawn
    if subject.single:
        yield 1.0, units, chance / chance.sum()
        return
    question = subject.scene.problem.outcomes["question"][units]
    for number in question.unique():
        here = question == number
        yield float(chance[here].sum()), units[here], chance[here] / chance[here].sum()


def compositions(total: int, parts: int) -> Tensor:
    """[C(total+parts−1, parts−1), parts] all ways to share ``total`` among ``parts``.

    >>> compositions(2, 2).tolist()
    [[0, 2], [1, 1], [2, 0]]
    """
    bars = torch.tensor(list(combinations(range(total + parts - 1), parts - 1)), dtype=torch.long).view(
        math.comb(total + parts - 1, parts - 1), -1
    )
    edges = torch.cat([torch.full((len(bars), 1), -1), bars, torch.full((len(bars), 1), total + parts - 1)], 1)
    return edges.diff(dim=1) - 1


def chance_of(counts: Tensor, p: Tensor) -> Tensor:
    """[K] multinomial probability of counts [K, C] for class probabilities p [C]."""
    total = counts[0].sum().double()
    logs = torch.special.xlogy(counts.double(), p) - torch.lgamma(counts.double() + 1)
    return (logs.sum(1) + torch.lgamma(total + 1)).exp()


def _rows(draws: int, classes: Tensor) -> float:
    """About how many rows the enumeration takes."""
    c = int(classes.max()) + 1
    return math.comb(draws + c - 1, c - 1) * min(1.0, draws / c + 1e-9) * len(classes) * draws if c > 1 else len(classes) * draws


def _enumerated(subject: Subject, parts: list, mode: str, name: str) -> Moments:
    mean, terms, second, tokens, kept, count = 0.0, {}, 0.0, 0.0, 0.0, 0
    for share, units, p, classes in parts:
        size = int(classes.max()) + 1
        of_class = torch.zeros(size, dtype=torch.float64).index_add_(0, classes, p)
        counts = compositions(subject.draws, size)
        weight = chance_of(counts, of_class)
        counts, weight = counts[weight > 0], weight[weight > 0]
        typical = torch.stack([units[classes == c][p[classes == c].argmax()] for c in range(size)])
        cell_k, cell_c = (counts > 0).nonzero().T
        members = [(classes == c).nonzero()[:, 0] for c in range(size)]
        sizes = torch.tensor([len(m) for m in members])[cell_c]
        cell = torch.arange(len(cell_k)).repeat_interleave(sizes)
        first = torch.cat([members[c] for c in cell_c.tolist()])
        rest = counts[cell_k] - torch.nn.functional.one_hot(cell_c, size)
        rest = torch.repeat_interleave(typical.repeat(len(rest)), rest.flatten()).view(len(cell_k), subject.draws - 1)
        index = torch.cat([units[first][:, None], rest[cell]], 1)
        chance = (p / of_class[classes])[first]  # of the member, given its class
        own, square, other, keep = _by_cell(subject, index, cell, chance, len(cell_k), mode)
        n_c = counts[cell_k, cell_c].double()[:, None]
        total = sum(own.values())
        expected = {term: torch.zeros(len(counts), own[term].shape[1], dtype=torch.float64) for term in own}
        for term in own:
            expected[term].index_add_(0, cell_k, n_c * own[term])
            lead = torch.zeros(len(counts), dtype=torch.long).index_copy_(0, cell_k.flip(0), torch.arange(len(cell_k)).flip(0))
            expected[term] += other[term][lead]
        whole = sum(expected.values())
        spread = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, cell_k, n_c[:, 0] * (square - total.square().sum(1)))
        mean = mean + share * (weight[:, None] * whole).sum(0)
        for term in expected:
            terms[term] = terms.get(term, 0.0) + share * (weight[:, None] * expected[term]).sum(0)
        second += share * float((weight * (whole.square().sum(1) + spread)).sum())
        kept += share * float((weight * torch.zeros_like(weight).index_copy_(0, cell_k, keep)).sum())
        tokens += share * subject.draws * float((p * subject.tokens[units]).sum())
        count += len(counts)
    scale = 1.0 / max(kept, 1e-300)  # dynamic sampling: batches are made of the groups that were kept
    mean, terms = mean * scale, {term: value * scale for term, value in terms.items()}
    return Moments(mean, terms, max(0.0, second * scale - float(mean.square().sum())), tokens * scale, None, count, name)


def _by_cell(subject: Subject, index: Tensor, cell: Tensor, chance: Tensor, cells: int, mode: str) -> tuple:
    """Term → [cells, D] mean of what the first draw adds, [cells] mean of its square, term → [cells, D] of the others, [cells] kept."""
    own, other, square, keep = {}, {}, torch.zeros(cells, dtype=torch.float64), torch.zeros(cells, dtype=torch.float64)
    for at in torch.arange(len(index)).split(max(1, CHUNK // subject.draws)):
        kept = subject.kept(index[at])
        keep.index_add_(0, cell[at], chance[at] * kept.double())
        if not kept.any():
            at = at[:1]  # nothing to add, but terms and sizes have to be known
            kept = torch.zeros(1, dtype=torch.bool)
        here = at[kept] if kept.any() else at
        first = 0.0
        for term, (drawn, rest) in subject.gradients(index[here], mode).items():
            value = drawn[:, 0] * (1.0 if kept.any() else 0.0)
            size = value.shape[1]
            own.setdefault(term, torch.zeros(cells, size, dtype=torch.float64)).index_add_(0, cell[here], chance[here][:, None] * value)
            other.setdefault(term, torch.zeros(cells, size, dtype=torch.float64)).index_add_(
                0, cell[here], chance[here][:, None] * rest * (1.0 if kept.any() else 0.0)
            )
            first = first + value
        square.index_add_(0, cell[here], chance[here] * first.square().sum(1))
    return own, square, other, keep


def _classes(subject: Subject, units: Tensor, also: tuple[str, ...]) -> Tensor:
    """Units of the same reward share a class, if they also have the same question, or length and rewards per action."""
    if subject.kind != "rollouts":
        return torch.arange(len(units))
    batch = subject.scene.problem.outcomes.take(units)
    marks = [batch["reward"].double()[:, None]]
    if "question" in also:
        marks.append(batch["question"].double()[:, None])
    if "length" in also:
        marks += [batch.lengths.double()[:, None], batch["truncated"].any(1).double()[:, None]]
        marks += [batch["rewards"]] if "rewards" in batch else []
    return torch.unique(torch.cat(marks, 1).round(decimals=12), dim=0, return_inverse=True)[1]


def _fine_enough(subject: Subject, units: Tensor, classes: Tensor, mode: str, seed: int, count: int = 24) -> bool:
    """On random groups: is what the first draw adds the same when the others are exchanged for members of their classes?"""
    if int(classes.max()) + 1 == len(units):
        return True
    g = torch.Generator().manual_seed(seed + 1)
    even = _varied(subject, units)
    index = torch.multinomial(even, count * subject.draws, True, generator=g).view(count, subject.draws)
    swapped = index.clone()
    for c in classes[index[:, 1:]].unique():
        members = (classes == c).nonzero()[:, 0]
        chosen = members[torch.multinomial(even[members], index.numel(), True, generator=g)].view(index.shape)
        swapped[:, 1:] = torch.where(classes[index[:, 1:]] == c, chosen[:, 1:], swapped[:, 1:])
    keep = subject.kept(units[index])
    if not bool((keep == subject.kept(units[swapped])).all()):
        return False
    if not keep.any():
        return True
    before, after = subject.gradients(units[index[keep]], mode), subject.gradients(units[swapped[keep]], mode)
    return all(_same(after[name][0][:, 0], before[name][0][:, 0]) and _same(after[name][1], before[name][1]) for name in before)


# -- sampling ----------------------------------------------------------------------------------------------------------
def random_groups(subject: Subject, count: int, seed: int, varied: bool = False) -> Tensor:
    """[count, G] random groups; ``varied``: every reward as likely as any other, for checks that must not miss what is rare."""
    g = torch.Generator().manual_seed(seed)
    parts = list(_questions(subject))
    share = torch.tensor([1.0 if varied else part[0] for part in parts], dtype=torch.float64)
    chosen = torch.multinomial(share, count, True, generator=g)
    index = torch.zeros(count, subject.draws, dtype=torch.long)
    for number, (_, units, p) in enumerate(parts):
        here = chosen == number
        p = _varied(subject, units) if varied else p
        drawn = torch.multinomial(p, max(1, int(here.sum())) * subject.draws, True, generator=g)
        index[here] = units[drawn].view(-1, subject.draws)[: int(here.sum())]
    return index


def _varied(subject: Subject, units: Tensor) -> Tensor:
    """[M] a distribution under which every reward and length is as likely as any other."""
    classes = _classes(subject, units, ("length",))
    return 1.0 / torch.bincount(classes).double()[classes]


def _sampled(subject: Subject, mode: str, seed: int, count: int) -> Moments:
    index = random_groups(subject, count, seed + 2)
    found, kept = {}, subject.kept(index)
    for part in index[kept].split(max(1, CHUNK // subject.draws)):
        for term, (drawn, rest) in subject.gradients(part, mode).items():
            found.setdefault(term, []).append(drawn.sum(1) + rest)
    each = {term: torch.cat(values) for term, values in found.items()}
    total = sum(each.values())
    n = len(total)
    tokens = float(subject.tokens[index].sum()) / n
    errors = {term: value.std(0) / math.sqrt(n) for term, value in each.items()}
    means = {term: value.mean(0) for term, value in each.items()}
    return Moments(total.mean(0), means, float(total.var(0).sum()), tokens, total.std(0) / math.sqrt(n), n, "", errors)
