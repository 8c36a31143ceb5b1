/**
 * Exponential backoff with jitter: a wait drawn from the upper half of min(limit, first · 2ⁿ),
 * so that clients that lost the same server do not come back in the same instant.
 *
 * @param {number} attempt 0 for the first retry
 * @param {{first: number, limit: number}} range ms
 * @param {() => number} [random]
 * @returns {number} ms
 */
export function backoff(attempt, { first, limit }, random = Math.random) {
  const ceiling = Math.min(limit, first * 2 ** Math.min(attempt, 30));
  return ceiling * (0.5 + random() / 2);
}
