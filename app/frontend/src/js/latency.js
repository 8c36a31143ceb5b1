/**
 * The hook for measuring: `window.tapLatency` holds the last 1,000 prices that were drawn, oldest
 * first, each `{t, received, drawn}`: the bar's stamp, and the moments its message arrived and the
 * frame that shows it was drawn, all in Unix ms (the last two with fractions).
 */

const KEPT = 1_000;

/** @type {{t: number, received: number, drawn: number}[]} */
const ring = [];
Object.defineProperty(window, 'tapLatency', { value: ring, enumerable: true });

/** @param {{t: number, received: number}[]} arrivals @param {number} drawn performance.now() */
export function recordDrawn(arrivals, drawn) {
  const origin = performance.timeOrigin;
  for (const { t, received } of arrivals) {
    ring.push({ t, received: origin + received, drawn: origin + drawn });
  }
  if (ring.length > KEPT) ring.splice(0, ring.length - KEPT);
}
