const JUMP_MS = 500;
const UNKNOWN_TRIP_MS = 1_000;
const SAMPLE_LIFE_MS = 300_000;

/**
 * The server's time, so that a wrong clock on this machine moves neither the chart nor the closing
 * of a column. The sample with the shortest round trip wins until it is old.
 */
export class ServerClock {
  #offset = Date.now() - performance.now();
  #target = this.#offset;
  #trip = Infinity;
  #sampled = 0;
  #slewed = performance.now();

  /**
   * @param {string} serverTime RFC 3339
   * @param {number} received performance.now()
   * @param {number} [sent] when we asked, if we did
   */
  sample(serverTime, received, sent) {
    const server = Date.parse(serverTime);
    if (Number.isNaN(server)) return;
    const trip = sent === undefined ? UNKNOWN_TRIP_MS : received - sent;
    if (trip > this.#trip && received - this.#sampled < SAMPLE_LIFE_MS) return;
    this.#trip = trip;
    this.#sampled = received;
    this.#target = server + (sent === undefined ? 0 : trip / 2) - received;
  }

  /** Forgets the old server's samples; the next one counts whatever its trip. */
  reset() {
    this.#trip = Infinity;
  }

  /** @returns {number} Unix ms; small corrections are spread over a second, large ones jump */
  now() {
    const local = performance.now();
    const gap = this.#target - this.#offset;
    const share = Math.min(1, (local - this.#slewed) / 1_000);
    this.#offset += Math.abs(gap) > JUMP_MS ? gap : gap * share;
    this.#slewed = local;
    return local + this.#offset;
  }
}
