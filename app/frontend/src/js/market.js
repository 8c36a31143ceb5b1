/**
 * What the page says about connection and market, from what it knows of both.
 *
 * @typedef {'connecting' | 'live' | 'delayed' | 'suspended' | 'reconnecting'} PageState
 */

const STALE_AFTER_MS = 3_000;

/** @type {Record<PageState, string>} */
export const STATE_WORDS = {
  connecting: 'Connecting',
  live: 'Live',
  delayed: 'Delayed',
  suspended: 'Suspended',
  reconnecting: 'Reconnecting',
};

/** @type {Record<string, string>} */
const REASON_WORDS = {
  feed_stale: 'the price feed is silent',
  starting: 'there is no price yet',
  no_price: 'there is no price',
  quorum_lost: 'too few exchanges can be heard',
  disagreement: 'the exchanges contradict each other',
  clock: 'the site\u2019s clock was set back',
  settling: 'prices are back and have to prove stable first',
  manual: 'the operators have stopped it',
  maintenance: 'maintenance',
  restart: 'the service is restarting',
};

export class Market {
  /** @type {'connecting' | 'live' | 'reconnecting'} */ #link = 'connecting';
  #state = 'suspended';
  #reason = '';
  /** When it may open again: performance.now(). @type {number | null} */ #opens = null;
  #lastPrice = -Infinity;

  /** @param {'live' | 'reconnecting'} link */
  setLink(link) {
    if (link === 'live' || this.#link === 'live') this.#link = link;
  }

  /** @param {import('./messages.js').MarketSays} says @param {number} received performance.now() */
  setState({ state, reason, retry_in_ms: wait }, received) {
    this.#state = state;
    this.#reason = reason;
    this.#opens = wait === null ? null : received + wait;
  }

  /** @param {number} received performance.now() */
  priceArrived(received) {
    this.#lastPrice = received;
  }

  /** @param {number} now performance.now() @returns {PageState} */
  pageState(now) {
    if (this.#link !== 'live') return this.#link;
    if (this.#state !== 'open' && this.#state !== 'degraded') return 'suspended';
    return this.#state === 'degraded' || now - this.#lastPrice > STALE_AFTER_MS ? 'delayed' : 'live';
  }

  /** Bets are taken while the market is open or degraded, and only while we can see it. */
  takesBets() {
    return this.#link === 'live' && (this.#state === 'open' || this.#state === 'degraded');
  }

  /**
   * The sentence over the stage, '' when there is nothing to say.
   * @param {PageState} state @param {{hasPrice: boolean, hasCells: boolean}} seen
   */
  notice(state, { hasPrice, hasCells }) {
    if (state === 'connecting') return 'Connecting to the market.';
    if (state === 'reconnecting') return 'Connection lost, reconnecting. Taps are off.';
    if (state === 'suspended') {
      return `Betting is suspended${this.#because}. Taps are off.`;
    }
    if (!hasPrice) return 'Waiting for the first price.';
    if (!hasCells) return 'No cells are offered right now.';
    return state === 'delayed' ? `The price is delayed${this.#because}.` : '';
  }

  /**
   * How long a suspension is going to last, in words; '' when nobody knows. Apart from the notice,
   * which is read aloud whenever it changes.
   * @param {PageState} state @param {number} now performance.now()
   */
  wait(state, now) {
    if (state !== 'suspended' || this.#opens === null || this.#opens <= now) return '';
    return `It may go on in ${Math.ceil((this.#opens - now) / 1_000)} s.`;
  }

  get #because() {
    const reason = REASON_WORDS[this.#reason] ?? this.#reason.replaceAll('_', ' ');
    return reason ? `: ${reason}` : '';
  }
}
