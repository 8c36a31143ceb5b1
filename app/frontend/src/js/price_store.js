/** @typedef {import('./messages.js').Bar} Bar */

export const WINDOW_MS = 60_000;
export const BAR_MS = 100;
const KEEP_MS = WINDOW_MS + 5_000;

/** The bars of the last minute, oldest first, and which of them no frame has drawn yet. */
export class PriceStore {
  /** @type {Bar[]} */ #bars = [];
  /** @type {{t: number, received: number}[]} */ #undrawn = [];

  get bars() {
    return this.#bars;
  }

  /** @returns {Bar | undefined} */
  get last() {
    return this.#bars.at(-1);
  }

  /** Takes a snapshot; older bars we hold already stay. @param {Bar[]} bars @param {Bar | null} price */
  restore(bars, price) {
    const fresh = [...bars].sort((a, b) => a.t - b.t);
    if (price && price.t > (fresh.at(-1)?.t ?? -Infinity)) fresh.push(price);
    if (fresh.length > 0) {
      this.#bars = [...this.#bars.filter((bar) => bar.t < fresh[0].t), ...fresh];
    }
    this.#undrawn = [];
    this.#trim();
  }

  /** @param {Bar} bar @param {number} received performance.now() */
  add(bar, received) {
    const last = this.last;
    if (last && bar.t < last.t) return;
    if (last && bar.t === last.t) this.#bars.pop();
    this.#bars.push(bar);
    this.#undrawn.push({ t: bar.t, received });
    this.#trim();
  }

  /** The arrivals since the last call: the frame that asks is the one that draws them. */
  takeUndrawn() {
    const taken = this.#undrawn;
    if (taken.length > 0) this.#undrawn = [];
    return taken;
  }

  /** Lowest, highest and first price since a moment. @param {number} since Unix ms */
  summary(since) {
    let low = Infinity;
    let high = -Infinity;
    let first;
    for (const bar of this.#bars) {
      if (bar.t < since) continue;
      first ??= bar.price;
      if (bar.low < low) low = bar.low;
      if (bar.high > high) high = bar.high;
    }
    return first === undefined ? null : { low, high, first };
  }

  #trim() {
    const oldest = (this.last?.t ?? 0) - KEEP_MS;
    let stale = 0;
    while (stale < this.#bars.length && this.#bars[stale].t < oldest) stale += 1;
    if (stale > 0) this.#bars.splice(0, stale);
    if (this.#undrawn.length > 1_000) this.#undrawn.splice(0, this.#undrawn.length - 1_000);
  }
}
