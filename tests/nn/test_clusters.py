"""K-means against a loop, against blobs whose groups are known, and what it must not depend on."""

from __future__ import annotations

import itertools

import pytest
import torch

from zsad.nn.clusters import group_means, kmeans, mean_of_means, most_anomalous_mean


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(
    images: int = 3, groups: int = 5, members: int = 8, *, width: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Well separated groups in mixed order, and to which one each token belongs."""
    truth = torch.stack(
        [
            torch.randperm(groups * members, generator=torch.Generator().manual_seed(i)) % groups
            for i in range(images)
        ]
    )
    centres = 20 * randn(images, groups, width, seed=7)
    return centres.gather(1, truth.unsqueeze(-1).expand(-1, -1, width)) + randn(
        images, groups * members, width
    ), truth


def same_partition(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one[:, None] == one[None], other[:, None] == other[None])


def slow_kmeans(tokens: torch.Tensor, clusters: int, iterations: int) -> list[int]:
    """One image, one token at a time."""
    rows = [row - tokens.mean(0) for row in tokens]
    distance = [[float((a - b).square().sum()) for b in rows] for a in rows]
    seeds: list[int] = []
    for _ in range(clusters):
        costs = [
            sum(min(distance[i][seed] for seed in [*seeds, candidate]) for i in range(len(rows)))
            for candidate in range(len(rows))
        ]
        seeds.append(costs.index(min(costs)))
    centres = [rows[seed] for seed in seeds]
    labels: list[int] = []
    for _ in range(iterations + 1):
        labels = [
            min(range(clusters), key=lambda k: float((row - centres[k]).square().sum())) for row in rows
        ]
        for k in range(clusters):
            own = [row for row, label in zip(rows, labels, strict=True) if label == k]
            centres[k] = torch.stack(own).mean(0) if own else centres[k]
    return labels


@pytest.mark.parametrize("iterations", [0, 1, 50])
def test_groups_equal_those_of_a_loop(iterations):
    tokens = randn(2, 30, 4)
    labels = kmeans(tokens, 5, iterations=iterations)
    for image, found in zip(tokens, labels, strict=True):
        assert found.tolist() == slow_kmeans(image, 5, iterations)


def test_separate_blobs_are_found_wherever_they_lie():
    tokens, truth = blobs()
    for moved in (tokens, tokens + 1e4, 1e-3 * tokens, tokens.float(), tokens.half()):
        for found, own in zip(kmeans(moved, 5), truth, strict=True):
            assert same_partition(found, own)


def test_images_do_not_influence_each_other_and_repetition_changes_nothing():
    tokens = randn(4, 40, 6)
    labels = kmeans(tokens, 7)
    assert torch.equal(labels, kmeans(tokens, 7))
    for index in range(4):
        assert torch.equal(labels[index : index + 1], kmeans(tokens[index : index + 1], 7))


def test_the_order_of_tokens_does_not_matter():
    tokens, _ = blobs(1)
    order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(3))
    assert same_partition(kmeans(tokens[:, order], 5)[0], kmeans(tokens, 5)[0, order])


def test_every_token_is_with_its_nearest_mean_and_the_spread_is_near_the_least():
    tokens = randn(20, 9, 2, seed=4)
    labels = kmeans(tokens, 2)
    means, _ = group_means(tokens, labels, 2)
    distances = (tokens.unsqueeze(2) - means.unsqueeze(1)).square().sum(-1)
    assert torch.equal(distances.argmin(-1), labels)
    choices = torch.tensor(list(itertools.product((0, 1), repeat=9)))
    ratios = []
    for image, least in zip(tokens, distances.amin(-1).sum(-1), strict=True):
        many = image.expand(len(choices), -1, -1)
        spread = many - group_means(many, choices, 2)[0].gather(1, choices.unsqueeze(-1).expand(-1, -1, 2))
        ratios.append(float(least / spread.square().sum((1, 2)).min()))
    assert min(ratios) > 1 - 1e-9 and sum(ratios) / len(ratios) < 1.1


def test_fewer_tokens_than_clusters_and_equal_tokens_give_no_nan():
    few = kmeans(randn(2, 3, 4), 20)
    assert all(sorted(row.tolist()) == [0, 1, 2] for row in few)
    equal = torch.ones(2, 6, 4)
    labels = kmeans(equal, 3)
    assert (labels == labels[:, :1]).all()
    assert torch.equal(mean_of_means(equal, labels, 3), torch.ones(2, 4))
    anomaly = torch.zeros(2, 6) - 5
    assert torch.equal(most_anomalous_mean(equal, labels, anomaly, 3), torch.ones(2, 4))


def test_means_and_the_chosen_group_equal_a_loop():
    labels = torch.randint(0, 4, (2, 12), generator=torch.Generator().manual_seed(1))
    tokens, anomaly = randn(2, 12, 3).requires_grad_(), randn(2, 12, seed=9)
    chosen, centre = most_anomalous_mean(tokens, labels, anomaly, 5), mean_of_means(tokens, labels, 5)
    for image in range(2):
        groups = [k for k in range(5) if (labels[image] == k).any()]
        means = {k: tokens[image, labels[image] == k].mean(0) for k in groups}
        highest = max(groups, key=lambda k: float(anomaly[image, labels[image] == k].mean()))
        torch.testing.assert_close(chosen[image], means[highest], atol=1e-14, rtol=0)
        expected = torch.stack(list(means.values())).mean(0)
        torch.testing.assert_close(centre[image], expected, atol=1e-14, rtol=0)
        gradients = [
            torch.autograd.grad((form * randn(3, seed=2)).sum(), tokens, retain_graph=True)[0]
            for form in (centre[image] + chosen[image], expected + means[highest])
        ]
        torch.testing.assert_close(*gradients, atol=1e-14, rtol=0)


def test_gradients_reach_the_members_of_the_chosen_group_alone():
    tokens, labels = randn(1, 6, 2).requires_grad_(), torch.tensor([[0, 0, 1, 1, 1, 2]])
    anomaly = torch.tensor([[0.1, 0.2, 0.9, 0.8, 0.9, 0.0]], dtype=torch.float64, requires_grad=True)
    most_anomalous_mean(tokens, labels, anomaly, 3).sum().backward()
    expected = torch.tensor([0, 0, 1, 1, 1, 0]) / 3
    torch.testing.assert_close(tokens.grad[0, :, 0], expected.double())
    assert anomaly.grad is None
