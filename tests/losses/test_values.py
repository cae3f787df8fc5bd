"""Values of every loss against scipy, torch or closed forms written out example by example."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from scipy.special import expit, rel_entr, softmax, xlogy
from torch.nn import functional as F

from distillkit import Attention, errors, losses
from tests.support import loss_oracle as oracle

T = 1.7


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = normal(3, 6, seed=1) * 2, normal(3, 6, seed=2) * 2
Q, P = (softmax(x.numpy() / T, -1) for x in (STUDENT, TEACHER))
LABELS = torch.tensor([0, 3, 5])


def close(ours, expected, **tolerance):
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12, **tolerance)


class TestDivergences:
    def test_reverse_kl(self):
        ours = losses.reverse_kl_divergence(STUDENT, TEACHER, temperature=T)
        close(ours, T**2 * rel_entr(Q, P).sum(-1))

    def test_jensen_shannon_against_scipy(self):
        ours = losses.jensen_shannon_divergence(STUDENT, TEACHER, temperature=T)
        close(ours, T**2 * scipy.spatial.distance.jensenshannon(P, Q, axis=-1) ** 2)

    def test_generalised_jensen_shannon(self):
        beta = 0.2
        m = beta * P + (1 - beta) * Q
        expected = beta * rel_entr(P, m).sum(-1) + (1 - beta) * rel_entr(Q, m).sum(-1)
        ours = losses.jensen_shannon_divergence(STUDENT, TEACHER, beta=beta, temperature=T)
        close(ours, T**2 * expected)

    def test_jensen_shannon_is_bounded_even_where_supports_differ(self):
        student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
        student.requires_grad_()
        value = losses.jensen_shannon_divergence(student, teacher)
        value.sum().backward()
        assert value.item() == pytest.approx(math.log(2))
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize("beta", [0.0, 1.0, -1.0, math.nan])
    def test_beta_at_its_ends_names_the_two_kls(self, beta):
        with pytest.raises(errors.OptionError, match="use the reverse or the forward KL"):
            losses.jensen_shannon_divergence(STUDENT, TEACHER, beta=beta)
        with pytest.raises(errors.OptionError, match="beta lies between 0 and 1"):
            losses.attention_jsd(*attentions(), beta=beta)

    def test_total_variation(self):
        ours = losses.total_variation(STUDENT, TEACHER, temperature=T)
        close(ours, T**2 * np.abs(P - Q).sum(-1) / 2)

    def test_soft_cross_entropy_is_kl_plus_entropy_and_torch_agrees(self):
        ours = losses.soft_cross_entropy(STUDENT, TEACHER, temperature=T)
        close(ours, T**2 * (rel_entr(P, Q).sum(-1) + scipy.stats.entropy(P, axis=-1)))
        expected = F.cross_entropy(STUDENT / T, torch.from_numpy(P), reduction="none")
        close(ours, T**2 * expected.numpy())

    def test_soft_binary_cross_entropy_against_torch(self):
        labels = torch.from_numpy(expit(TEACHER.numpy() / T))
        expected = F.binary_cross_entropy_with_logits(STUDENT / T, labels, reduction="none")
        ours = losses.soft_binary_cross_entropy(STUDENT, TEACHER, temperature=T)
        close(ours, T**2 * expected.sum(-1).numpy())

    def test_soft_binary_cross_entropy_of_certain_classes(self):
        student = torch.tensor([[-math.inf, math.inf, -math.inf]])
        teacher = torch.tensor([[-math.inf, math.inf, 0.0]])
        assert losses.soft_binary_cross_entropy(student[:, :2], teacher[:, :2]).item() == 0
        assert losses.soft_binary_cross_entropy(student, teacher).item() == math.inf

    def test_universal_logit_distance(self):
        student, teacher = normal(3, 4, seed=3), TEACHER
        q = np.sort(softmax(student.numpy() / T, -1))[:, ::-1]
        p = np.sort(P)[:, ::-1]
        expected = np.abs(p - np.pad(q, ((0, 0), (0, 2)))).sum(-1)
        close(losses.universal_logit_distance(student, teacher, temperature=T), T**2 * expected)
        permuted = teacher[:, torch.randperm(6)]
        assert (losses.universal_logit_distance(permuted, teacher) < 1e-14).all()


class TestTargets:
    def test_decoupled(self):
        expected = []
        for q, p, y in zip(Q, P, LABELS.tolist(), strict=True):
            rest_q, rest_p = np.delete(q, y), np.delete(p, y)
            binary = rel_entr([p[y], 1 - p[y]], [q[y], 1 - q[y]]).sum()
            others = rel_entr(rest_p / rest_p.sum(), rest_q / rest_q.sum()).sum()
            expected.append(T**2 * (0.7 * binary + 3.0 * others))
        ours = losses.decoupled_kl_divergence(
            STUDENT, TEACHER, labels=LABELS, alpha=0.7, beta=3.0, temperature=T
        )
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-8)

    def test_decoupled_is_the_kl_where_beta_is_the_rests_mass(self):
        for row in range(3):
            rest = 1 - P[row, LABELS[row]]
            args = STUDENT[row : row + 1], TEACHER[row : row + 1]
            parts = losses.decoupled_kl_divergence(
                *args, labels=LABELS[row : row + 1], alpha=1.0, beta=float(rest), temperature=T
            )
            close(parts, losses.kl_divergence(*args, temperature=T).numpy())

    def test_decoupled_with_a_certain_teacher(self):
        teacher = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.float32)
        student = torch.zeros(1, 3, requires_grad=True)
        value = losses.decoupled_kl_divergence(student, teacher, labels=torch.tensor([0]))
        value.sum().backward()
        assert value.item() == pytest.approx(math.log(3), rel=1e-5)
        assert student.grad.isfinite().all()

    def test_two_classes_have_no_second_part(self):
        args = STUDENT[:, :2], TEACHER[:, :2]
        labels = torch.tensor([0, 1, 1])
        ours = losses.decoupled_kl_divergence(*args, labels=labels, beta=100.0)
        close(ours, losses.kl_divergence(*args).numpy())

    def test_nkd(self):
        cold_q, cold_p = (softmax(x.numpy(), -1) for x in (STUDENT, TEACHER))
        expected = []
        for row, y in enumerate(LABELS.tolist()):
            rest_q, rest_p = np.delete(Q[row], y), np.delete(P[row], y)
            target = -cold_p[row, y] * math.log(cold_q[row, y])
            others = -xlogy(rest_p / rest_p.sum(), rest_q / rest_q.sum()).sum()
            expected.append(target + 0.9 * T**2 * others)
        ours = losses.nkd(STUDENT, TEACHER, labels=LABELS, gamma=0.9, temperature=T)
        close(ours, expected)

    @pytest.mark.parametrize(
        "labels", [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1]), torch.tensor([True] * 3)]
    )
    def test_labels_are_one_class_for_each_row(self, labels):
        for loss in (losses.decoupled_kl_divergence, losses.nkd):
            with pytest.raises(errors.ShapeError, match="labels are integers of shape"):
                loss(STUDENT, TEACHER, labels=labels)


class TestCorrelations:
    def test_pearson_against_scipy(self):
        expected = [T**2 * (1 - scipy.stats.pearsonr(q, p)[0]) for q, p in zip(Q, P, strict=True)]
        close(losses.pearson_distance(STUDENT, TEACHER, temperature=T), expected)

    def test_over_the_batch(self):
        expected = [
            T**2 * (1 - scipy.stats.pearsonr(q, p)[0]) for q, p in zip(Q.T, P.T, strict=True)
        ]
        close(losses.intra_class_pearson_distance(STUDENT, TEACHER, temperature=T), expected)
        one = losses.intra_class_pearson_distance(STUDENT[:1], TEACHER[:1])
        assert one.tolist() == [0] * 6

    def test_a_constant_row_has_value_one_and_no_gradient(self):
        student = torch.full((1, 5), 0.3, requires_grad=True)
        value = losses.pearson_distance(student, torch.randn(1, 5), temperature=2.0)
        value.sum().backward()
        assert value.item() == 4.0
        assert not student.grad.any()

    def test_standardize(self):
        close(
            losses.standardize_logits(STUDENT), scipy.stats.zscore(STUDENT.numpy(), axis=-1, ddof=1)
        )
        assert not losses.standardize_logits(torch.full((2, 7), 0.1)).any()
        assert losses.standardize_logits(torch.ones(2, 1)).tolist() == [[0], [0]]


class TestTopK:
    def test_all_classes_stored_is_the_dense_value(self):
        values, indices = TEACHER.log_softmax(-1).sort(-1, descending=True)
        ours = losses.top_k_kl_divergence(STUDENT, values, indices, temperature=T)
        close(ours, losses.kl_divergence(STUDENT, TEACHER, temperature=T).numpy())
        ours = losses.top_k_jensen_shannon_divergence(
            STUDENT, values, indices, beta=0.3, temperature=T
        )
        dense = losses.jensen_shannon_divergence(STUDENT, TEACHER, beta=0.3, temperature=T)
        close(ours, dense.numpy())

    def test_the_rest_is_one_bucket(self):
        values, indices = TEACHER.log_softmax(-1).topk(2, -1)
        expected = []
        for row in range(3):
            q, p = (softmax(x[row].numpy()) for x in (STUDENT, TEACHER))
            kept = indices[row].numpy()
            buckets = [np.append(x[kept], np.delete(x, kept).sum()) for x in (q, p)]
            q, p = (softmax(np.log(x) / T) for x in buckets)
            expected.append(T**2 * rel_entr(p, q).sum())
        close(losses.top_k_kl_divergence(STUDENT, values, indices, temperature=T), expected)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_equal_models_with_a_uniform_tail_are_at_distance_zero(self, temperature):
        logits = torch.zeros(1, 1000, dtype=torch.float64)
        values, indices = logits.log_softmax(-1).topk(10, -1)
        value = losses.top_k_kl_divergence(logits, values, indices, temperature=temperature)
        assert value.item() == pytest.approx(0, abs=1e-10)

    def test_shapes(self):
        with pytest.raises(errors.ShapeError, match="k <= v"):
            losses.top_k_kl_divergence(STUDENT[:, :2], TEACHER, torch.zeros(3, 6, dtype=torch.long))
        with pytest.raises(errors.ShapeError, match="integer indices"):
            losses.top_k_kl_divergence(STUDENT, TEACHER, TEACHER)


class TestDynamicTopK:
    P = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
    Q = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    KEPT = ([0, 1, 2], [0])  # 0.2 ties with the last of two classes

    @pytest.mark.parametrize("reverse", [False, True])
    def test_by_hand(self, reverse):
        name = "dynamic_top_k_reverse_kl_divergence" if reverse else "dynamic_top_k_kl_divergence"
        ours = getattr(losses, name)(self.Q.log(), self.P.log(), mass=0.6)
        expected = []
        for q, p, kept in zip(self.Q.numpy(), self.P.numpy(), self.KEPT, strict=True):
            one, other = (np.append(x[kept], 1 - x[kept].sum()) for x in (p, q))
            expected.append(rel_entr(*((other, one) if reverse else (one, other))).sum())
        close(ours, expected)

    def test_the_student_may_choose(self):
        ours = losses.dynamic_top_k_kl_divergence(
            self.Q.log(), self.P.log(), mass=0.35, select="student"
        )
        expected = [
            rel_entr([0.1, 0.9], [0.4, 0.6]).sum(), rel_entr([0.97, 0.03], [0.4, 0.6]).sum()
        ]  # fmt: skip
        close(ours, expected)

    @pytest.mark.parametrize("direction", ["", "reverse_"])
    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_all_of_the_mass_is_the_dense_value(self, direction, temperature):
        student, teacher = normal(6, 9, seed=1), normal(6, 9, seed=2)
        where = normal(6, 9, seed=3) > -1
        dense = getattr(losses, f"{direction}kl_divergence")
        ours = getattr(losses, f"dynamic_top_k_{direction}kl_divergence")
        given = {"temperature": temperature, "where": where}
        expected = dense(student, teacher, **given)
        close(ours(student, teacher, mass=1.0, **given), expected.numpy())
        less = ours(student, teacher, mass=0.7, **given)
        assert (less <= expected + 1e-12).all()
        assert (less < expected - 1e-6).any()

    def test_gradient(self):
        student, teacher = normal(4, 6, seed=1).requires_grad_(), normal(4, 6, seed=2)
        for loss in (
            losses.dynamic_top_k_kl_divergence, losses.dynamic_top_k_reverse_kl_divergence
        ):  # fmt: skip
            assert torch.autograd.gradcheck(lambda x: loss(x, teacher, mass=0.6), student)  # noqa: B023

    def test_errors(self):
        with pytest.raises(errors.OptionError, match="mass lies above 0 and is at most 1; got 0"):
            losses.dynamic_top_k_kl_divergence(self.Q, self.P, mass=0.0)
        with pytest.raises(errors.OptionError, match='"teacher" or "student"; got \'both\''):
            losses.dynamic_top_k_kl_divergence(self.Q, self.P, select="both")


class TestFeatures:
    def test_smooth_l1_against_torch(self):
        expected = F.smooth_l1_loss(STUDENT, TEACHER, beta=0.5, reduction="none").mean(-1)
        close(losses.smooth_l1(STUDENT, TEACHER, beta=0.5), expected.numpy())
        with pytest.raises(errors.OptionError, match="beta must be greater than 0"):
            losses.smooth_l1(STUDENT, TEACHER, beta=0.0)

    def test_normalized_mse_is_the_cosine_distance_in_disguise(self):
        ours = losses.normalized_mse(STUDENT, TEACHER)
        close(ours, 2 / 6 * losses.cosine_distance(STUDENT, TEACHER).numpy())
        zero = losses.normalized_mse(torch.zeros(1, 4), torch.randn(1, 4))
        assert zero.item() == pytest.approx(0.25)

    def test_attention_transfer(self):
        student, teacher = normal(2, 3, 4, 5), normal(2, 6, 4, 5, seed=1)
        maps = [(x.numpy() ** 2).sum(1).reshape(2, -1) for x in (student, teacher)]
        one, other = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps)
        close(losses.attention_transfer(student, teacher), ((one - other) ** 2).sum(1))


def attentions():
    keep = torch.tensor([[True, True, True, False], [True, False, True, True]])[:, None, None]
    make = [
        Attention(normal(2, 2, 3, 4, seed=i), normal(2, 2, 4, 4, seed=i + 9), mask=keep)
        for i in (1, 2)
    ]
    return make[0], make[1]


class TestAttention:
    def test_on_probabilities_of_kept_keys(self):
        student, teacher = attentions()
        q, p = (x.probabilities().numpy() for x in (student, teacher))
        close(losses.attention_reverse_kl(student, teacher), rel_entr(q, p).sum(-1))
        close(
            losses.attention_jsd(student, teacher),
            scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2,
        )
        close(losses.attention_mse(student, teacher), ((p - q) ** 2).sum(-1) / 3)
        cosine = (p * q).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(q, axis=-1)
        close(losses.attention_cosine_distance(student, teacher), 1 - cosine)

    @pytest.mark.parametrize(
        "loss",
        [
            losses.attention_reverse_kl,
            losses.attention_jsd,
            losses.attention_mse,
            losses.attention_cosine_distance,
        ],
    )
    def test_rows_that_do_not_count_and_averaged_heads(self, loss):
        student, teacher = attentions()
        rows = torch.tensor([[True, False, True], [False, False, True]])
        value = loss(student.with_rows(rows), teacher)
        assert not value.permute(0, 2, 1)[~rows].any()
        torch.testing.assert_close(
            value.permute(0, 2, 1)[rows], loss(student, teacher).permute(0, 2, 1)[rows]
        )
        means = [
            Attention.from_probabilities(x.probabilities().mean(1, keepdim=True))
            for x in (student, teacher)
        ]
        torch.testing.assert_close(loss(student, teacher, heads="mean"), loss(*means))


class TestTokenRelations:
    def test_against_the_definition(self):
        student, teacher = normal(2, 4, 5, 3), normal(2, 2, 5, 8, seed=1)
        where = torch.tensor([[True] * 5, [True, True, True, False, False]])
        ours = losses.relation_kl(student, teacher, relation_heads=2, where=where)
        relations = []
        for x in (student, teacher):
            joined = x.permute(0, 2, 1, 3).reshape(2, 5, -1)
            relations.append(
                [joined[..., : joined.shape[-1] // 2], joined[..., joined.shape[-1] // 2 :]]
            )
        for head, i in itertools.product(range(2), range(2)):
            scores = []
            for side in relations:
                a = side[head][i][where[i]].numpy()
                scores.append(a @ a.T / math.sqrt(a.shape[1]))
            expected = rel_entr(softmax(scores[1], -1), softmax(scores[0], -1)).sum(-1)
            close(ours[i, head][where[i]], expected)
        assert not ours[1, :, 3:].any()

    @pytest.mark.parametrize("of", ["query", "key", "value"])
    def test_of_an_attention(self, of):
        make = [
            Attention(
                normal(1, 4, 3, 2, seed=i),
                normal(1, 2, 3, 2, seed=i + 5),
                normal(1, 2, 3, 4, seed=i + 7),
            )
            for i in (1, 2)
        ]
        rows = torch.tensor([[True, True, False]])
        ours = losses.relation_kl(make[0].with_rows(rows), make[1], of=of, relation_heads=2)
        tensors = [getattr(x, of) for x in make]
        close(ours, losses.relation_kl(*tensors, relation_heads=2, where=rows).numpy())

    def test_bad_input(self):
        bare = Attention(normal(1, 4, 3, 2), normal(1, 4, 3, 2))
        with pytest.raises(errors.ShapeError, match="holds no value"):
            losses.relation_kl(bare, bare, of="value", relation_heads=2)
        with pytest.raises(errors.OptionError, match='of is "query"'):
            losses.relation_kl(bare, bare, of="output", relation_heads=2)
        with pytest.raises(errors.ShapeError, match="does not split into 3 heads"):
            losses.relation_kl(bare, bare, relation_heads=3)


class TestExampleRelations:
    S, E = normal(5, 4, seed=4), normal(5, 7, seed=5)

    def test_rkd_distance(self):
        maps = []
        for x in (self.S, self.E):
            distances = scipy.spatial.distance.cdist(x.numpy(), x.numpy())
            maps.append(distances / distances[~np.eye(5, dtype=bool)].mean())
        expected = F.huber_loss(*map(torch.from_numpy, maps), reduction="none")
        close(losses.rkd_distance(self.S, self.E), expected.numpy())

    def test_rkd_angle(self):
        ours = losses.rkd_angle(self.S, self.E)
        for i, j, k in itertools.product(range(5), repeat=3):
            angles = []
            for x in (self.S.numpy(), self.E.numpy()):
                a, b = x[j] - x[i], x[k] - x[i]
                size = np.linalg.norm(a) * np.linalg.norm(b)
                angles.append(0.0 if size == 0 else a @ b / size)
            x = abs(angles[0] - angles[1])
            assert ours[i, j, k].item() == pytest.approx(
                0.5 * x**2 if x < 1 else x - 0.5, abs=1e-12
            )
        distinct = losses.distinct_triplets(5)
        assert distinct.sum() == 5 * 4 * 3
        i, j, k = np.indices((5, 5, 5))
        assert torch.equal(distinct, torch.from_numpy((i != j) & (j != k) & (i != k)))

    def test_duplicates_have_a_finite_gradient(self):
        student = self.S[[0, 0, 1, 1]].clone().requires_grad_()
        for loss in (losses.rkd_distance, losses.rkd_angle):
            (gradient,) = torch.autograd.grad(loss(student, self.E[:4]).sum(), student)
            assert gradient.isfinite().all()

    def test_similarity_preserving(self):
        grams = [x.numpy() @ x.numpy().T for x in (self.S, self.E)]
        one, other = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
        close(losses.similarity_preserving(self.S, self.E), (one - other) ** 2)

    def test_relation_cosine_distance(self):
        one, other = (x.numpy() @ x.numpy().T for x in (self.S, self.E))
        expected = 1 - (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
        close(losses.relation_cosine_distance(self.S, self.E), expected)

    def test_tokens_that_do_not_count_have_no_relations(self):
        valid = torch.tensor([[True, False, True, True, False], [True] * 5, [False] * 5])
        student = torch.stack([self.S] * 3)
        student[~valid] = torch.nan
        student.requires_grad_()
        teacher = torch.stack([self.E] * 3).masked_fill(~valid[..., None], torch.inf)
        ours = losses.relation_cosine_distance(student, teacher, valid=valid)
        kept = [0, 2, 3]
        alone = losses.relation_cosine_distance(self.S[kept], self.E[kept])
        whole = losses.relation_cosine_distance(self.S, self.E)
        close(ours.detach(), [alone, whole, 0.0])
        (gradient,) = torch.autograd.grad(ours.sum(), student)
        assert gradient.isfinite().all()
        assert not gradient[~valid].any()
        assert gradient[0, kept].all()

    def test_an_attention_has_no_relations_of_vectors(self):
        attention = Attention.from_scores(torch.zeros(1, 1, 2, 2))
        with pytest.raises(errors.ShapeError, match="takes tensors; got student Attention"):
            losses.relation_cosine_distance(attention, self.E)

    def test_relations_of_sizes_that_overflow(self):
        student, teacher = self.S.float(), self.E.float()
        expected = losses.relation_cosine_distance(student, teacher)
        ours = losses.relation_cosine_distance(1e30 * student, 1e-30 * teacher)
        torch.testing.assert_close(ours, expected)
        assert losses.relation_cosine_distance(0 * student, teacher) == 1

    def test_a_valid_of_another_shape(self):
        with pytest.raises(errors.ShapeError, match=r"valid is boolean \(5,\).*\(4,\)"):
            losses.relation_cosine_distance(self.S, self.E, valid=torch.ones(4).bool())

    def test_pkt(self):
        kernels = [
            (1 - scipy.spatial.distance.cdist(x, x, "cosine") + 1) / 2
            for x in (self.S.numpy(), self.E.numpy())
        ]
        q, p = (k / k.sum(1, keepdims=True) for k in kernels)
        close(losses.pkt(self.S, self.E), rel_entr(p, q).sum(-1))

    @pytest.mark.parametrize("unbiased", [False, True])
    def test_cka(self, unbiased):
        def hsic(k, m):
            n = len(k)
            if not unbiased:
                h = np.eye(n) - 1 / n
                return np.trace(k @ h @ m @ h)
            k, m = (x - np.diag(np.diag(x)) for x in (k, m))
            one = np.ones(n)
            middle = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
            return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

        k, m = (x.numpy() @ x.numpy().T for x in (self.S, self.E))
        expected = 1 - hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
        assert losses.cka_distance(self.S, self.E, unbiased=unbiased).item() == pytest.approx(
            expected
        )
        if unbiased:
            with pytest.raises(errors.ShapeError, match="at least 4 examples; got 3"):
                losses.cka_distance(self.S[:3], self.E[:3], unbiased=True)
        assert losses.cka_distance(torch.ones(5, 2), self.E.float()).item() == 1


class TestContrastive:
    S, E = normal(5, 4, seed=6), normal(5, 4, seed=7)

    def cosines(self, one, other):
        return 1 - scipy.spatial.distance.cdist(one.numpy(), other.numpy(), "cosine")

    def test_info_nce_against_cross_entropy(self):
        logits = torch.from_numpy(self.cosines(self.S, self.E)) / 0.2
        expected = F.cross_entropy(logits, torch.arange(5), reduction="none")
        close(losses.info_nce(self.S, self.E, temperature=0.2), expected.numpy())
        assert losses.info_nce(self.S[:1], self.E[:1]).item() == 0

    def test_interactive(self):
        others = normal(5, 4, seed=8), normal(5, 4, seed=9)
        ours = losses.interactive_contrastive(self.S, self.E, *others, temperature=0.3)
        image_to_text = losses.info_nce(self.S, others[1], temperature=0.3)
        text_to_image = losses.info_nce(self.E, others[0], temperature=0.3)
        close(ours, ((image_to_text + text_to_image) / 2).numpy())

    def test_relational(self):
        image, text = normal(5, 9, seed=8), normal(5, 9, seed=9)
        expected = 0
        for one, other, teacher_one, teacher_other in (
            (self.S, self.E, image, text),
            (self.E, self.S, text, image),
        ):
            q = softmax(self.cosines(one, other) / 0.2, -1)
            p = softmax(self.cosines(teacher_one, teacher_other) / 0.4, -1)
            expected = expected + rel_entr(p, q).sum(-1) / 2
        ours = losses.contrastive_relational(
            self.S, self.E, image, text, student_temperature=0.2, teacher_temperature=0.4
        )
        close(ours, expected)

    def test_students_and_teachers_of_different_batches(self):
        with pytest.raises(errors.ShapeError, match="embed the same examples"):
            losses.contrastive_relational(self.S, self.S, self.E[:4], self.E[:4])


def test_the_oracle_of_logits_agrees_with_scipy_here_too():
    close(losses.kl_divergence(STUDENT, TEACHER, temperature=T), T**2 * rel_entr(P, Q).sum(-1))
    close(losses.kl_divergence(STUDENT, TEACHER), oracle.kl_divergence(STUDENT, TEACHER))
