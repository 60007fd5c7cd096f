"""How a token is drawn, in plain Python: one row, one candidate after the other."""

import math

MASK = 2**64 - 1


def uniform(seed, position):
    """Returns the random number of a seed and a position: splitmix64 of both, the upper 53 bits."""

    def mix(number):
        number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
        return number ^ (number >> 31)

    step = 0x9E3779B97F4A7C15
    return (mix((mix((seed + step) & MASK) + position * step) & MASK) >> 11) / 2**53


def log_softmax(logits):
    peak = max(logits)
    total = sum(math.exp(logit - peak) for logit in logits)
    return [logit - peak - math.log(total) for logit in logits]


def weights_of(logits, options, said=(), excluded=()):
    """Returns what each token weighs once all options have had their say."""
    logits = [float(logit) for logit in logits]
    for number in set(said):
        logit = logits[number]
        logits[number] = logit / options.penalty if logit > 0 else logit * options.penalty
    for number in excluded:
        logits[number] = -math.inf
    peak = max(logits)
    if options.temperature == 0:
        best = logits.index(peak)
        return [1.0 if number == best else 0.0 for number in range(len(logits))]
    weights = [math.exp((logit - peak) / options.temperature) for logit in logits]
    ranked = sorted(range(len(weights)), key=lambda number: (-weights[number], number))
    if options.top_k:
        for number in ranked[options.top_k :]:
            weights[number] = 0.0
    if options.top_p < 1:
        total = 0.0
        for number in ranked:
            total += weights[number]
        reached = 0.0
        for number in ranked:
            if reached >= options.top_p * total:
                weights[number] = 0.0
            else:
                reached += weights[number]
    largest = max(weights)
    return [weight if weight >= options.min_p * largest else 0.0 for weight in weights]


def draw(logits, options, seed, position, said=(), excluded=()):
    """Returns the id of the token and its log-probability under the model."""
    weights = weights_of(logits, options, said, excluded)
    target = uniform(seed, position) * math.fsum(weights)
    reached, last = 0.0, None
    for number, weight in enumerate(weights):
        if weight:
            reached, last = reached + weight, number
            if reached > target:
                break
    return last, log_softmax([float(logit) for logit in logits])[last]
