import { parseCell } from './cell.js';
import { readBet } from './messages.js';

/** @typedef {import('./messages.js').Bet} Bet */
/** @typedef {import('./session.js').Session} Session */

/** A bet goes only forward through these. */
const STAGE = { pending: 0, confirmed: 1, insufficient_funds: 2, won: 2, lost: 2, void: 2 };
const SETTLED = 2;

const RESULT_WITHIN_MS = 3_000;
const ASK_AGAIN = { first: 4_000, limit: 60_000 };
const PAGE = 100;
const PAGES = 5;
const KEPT = 500;

/** @param {Bet} bet */
export const isSettled = ({ status }) => STAGE[status] === SETTLED;

/**
 * The trader's own bets, from whoever tells of them: an answer, the stream, or the site when it is
 * asked. News may come twice and in any order; a bet never goes back. There is one bet a cell.
 */
export class OwnBets {
  #session;
  #onChange;
  /** @type {Map<string, Bet>} by cell id, in the order they became known */ #bets = new Map();
  /** @type {Map<string, {at: number, wait: number}>} by bet id: when to ask */ #asking = new Map();
  #asks = false;
  /** @type {Promise<void> | null} */ #reading = null;
  #readAgain = false;

  /** @param {Session} session @param {(bet: Bet, before: Bet | undefined) => void} onChange */
  constructor(session, onChange) {
    this.#session = session;
    this.#onChange = onChange;
  }

  /** @returns {Bet[]} */
  get all() {
    return [...this.#bets.values()];
  }

  /** @param {string} cellId */
  on(cellId) {
    return this.#bets.get(cellId);
  }

  /** @param {Bet} bet */
  take(bet) {
    // One that was never placed does not occupy its cell.
    if (bet.status === 'insufficient_funds') return;
    const before = this.#bets.get(bet.cellId);
    if (before && STAGE[bet.status] < STAGE[before.status]) return;
    if (before?.status === bet.status && (before.voidReason || !bet.voidReason)) return;
    this.#bets.set(bet.cellId, bet);
    if (isSettled(bet)) this.#asking.delete(bet.betId);
    this.#onChange(bet, before);
    this.#trim();
  }

  /** Who signs out leaves nothing behind. @returns {string[]} the cells that had bets */
  forget() {
    const cells = [...this.#bets.keys()];
    this.#bets.clear();
    this.#asking.clear();
    return cells;
  }

  /** Reads them from the site, as far back as there are open ones; once more if asked meanwhile. */
  read() {
    if (this.#reading !== null) {
      this.#readAgain = true;
      return;
    }
    this.#reading = this.#read().finally(() => {
      this.#reading = null;
      if (this.#readAgain) {
        this.#readAgain = false;
        this.read();
      }
    });
  }

  async #read() {
    /** @type {Bet[]} */ const found = [];
    let next = '';
    for (let page = 0; page < PAGES; page += 1) {
      const body = await this.#session.read(`/api/bets?limit=${PAGE}${next}`);
      const bets = (Array.isArray(body?.items) ? body.items : []).map(readBet);
      found.push(...bets.filter((bet) => bet !== null));
      const goesOn = bets.some((bet) => bet !== null && !isSettled(bet));
      if (!goesOn || typeof body.next_cursor !== 'string') break;
      next = `&cursor=${encodeURIComponent(body.next_cursor)}`;
    }
    for (const bet of found.reverse()) this.take(bet);
  }

  /** Asks for one bet: why it is void, or what became of it. @param {string} betId */
  async ask(betId) {
    const bet = readBet(await this.#session.read(`/api/bets/${encodeURIComponent(betId)}`));
    if (bet !== null) this.take(bet);
  }

  /**
   * Asks for the bet whose result is overdue the longest, one at a time and ever more seldom.
   * @param {number} now Unix ms, the server's
   */
  async askOverdue(now) {
    if (this.#asks) return;
    const due = this.all.find((bet) => !isSettled(bet) && this.#isDue(bet, now));
    if (due === undefined) return;
    const wait = this.#asking.get(due.betId)?.wait ?? ASK_AGAIN.first;
    this.#asking.set(due.betId, { at: now + wait, wait: Math.min(wait * 2, ASK_AGAIN.limit) });
    this.#asks = true;
    try {
      await this.ask(due.betId);
    } finally {
      this.#asks = false;
    }
  }

  /** @param {Bet} bet @param {number} now */
  #isDue({ betId, cellId }, now) {
    const end = parseCell(cellId)?.end ?? Infinity;
    return now >= end + RESULT_WITHIN_MS && now >= (this.#asking.get(betId)?.at ?? 0);
  }

  #trim() {
    for (const [cellId, bet] of this.#bets) {
      if (this.#bets.size <= KEPT) return;
      if (isSettled(bet)) this.#bets.delete(cellId);
    }
  }
}
