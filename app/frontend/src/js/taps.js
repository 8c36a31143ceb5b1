import { RATE_TOLERANCE } from './bets.js';
import { parseCell } from './cell.js';
import * as format from './format.js';

/** @typedef {import('./messages.js').Bet} Bet */
/**
 * @typedef {'sending' | 'pending' | 'confirmed' | 'won' | 'lost' | 'void' | 'refused' | 'unknown'}
 *   BetState of a tap or of the bet that it became
 */

const SHOWN = 30;

/** @type {Record<string, string>} */
const VOID_WORDS = {
  no_price: 'there was no price to fix the rate by',
  rate_below_minimum: `the rate fell more than ${RATE_TOLERANCE} % below the one shown`,
  not_offered: 'the cell was not offered any more when the rate was fixed',
  feed_outage: 'the price feed had a gap in the window',
};

/** @type {Record<string, string>} */
const WORDS = {
  sending: 'Sending', pending: 'Pending', refused: 'Refused', unknown: 'No answer', lost: 'Lost',
};

/** The list of taps and bets, one line a cell, newest first. */
export class Taps {
  #list;
  #empty;
  /** @type {Map<string, {line: HTMLElement, at: number}>} by cell id */ #lines = new Map();

  /** @param {HTMLElement} list @param {HTMLElement} empty shown while there is none */
  constructor(list, empty) {
    this.#list = list;
    this.#empty = empty;
  }

  /**
   * A tap, at the top of the list, until it is known what became of it.
   * @param {{cellId: string, amount: number}} bet @param {number} at Unix ms
   * @param {BetState} state
   */
  tapped({ cellId, amount }, at, state) {
    if (state === 'sending') this.remove(cellId);
    this.#write(this.#line(cellId, amount, at), state, WORDS[state]);
  }

  /** A bet as the site knows it. @param {Bet} bet */
  show(bet) {
    const line = this.#line(bet.cellId, bet.amount, bet.placedAt);
    line.dataset.betId = bet.betId;
    this.#write(line, bet.status, stateWords(bet));
  }

  /** @param {string} cellId */
  remove(cellId) {
    this.#lines.get(cellId)?.line.remove();
    this.#lines.delete(cellId);
    this.#empty.hidden = this.#lines.size > 0;
  }

  /** @param {string} cellId @param {number} amount @param {number} at Unix ms */
  #line(cellId, amount, at) {
    const known = this.#lines.get(cellId);
    if (known) return known.line;
    const cell = parseCell(cellId);
    const line = document.createElement('li');
    line.dataset.cellId = cellId;
    line.append(
      text('band', cell ? format.band(cell.low, cell.high) : cellId),
      text('stake', format.money(amount)),
      text('window', cell ? `${format.time(cell.start)} to ${format.time(cell.end)}` : ''),
      text('state', ''),
    );
    this.#insert(line, cellId, at);
    return line;
  }

  /** By time, and the oldest line too many goes. */
  #insert(line, cellId, at) {
    this.#lines.set(cellId, { line, at });
    const older = [...this.#list.children].find((other) => (
      (this.#lines.get(/** @type {HTMLElement} */ (other).dataset.cellId ?? '')?.at ?? 0) <= at
    ));
    this.#list.insertBefore(line, older ?? null);
    this.#empty.hidden = true;
    const last = /** @type {HTMLElement} */ (this.#list.lastElementChild);
    if (this.#lines.size > SHOWN) this.remove(last.dataset.cellId ?? '');
  }

  /** @param {HTMLElement} line @param {BetState | import('./messages.js').BetStatus} state */
  #write(line, state, words) {
    line.dataset.bet = state;
    const shown = /** @type {Element} */ (line.lastElementChild);
    if (shown.textContent !== words) shown.textContent = words;
  }
}

/** @param {Bet} bet */
function stateWords({ status, rate, payout, voidReason }) {
  switch (status) {
    case 'confirmed':
      return rate === null ? 'Confirmed' : `Confirmed at ${rate}×`;
    case 'won':
      return payout === null ? 'Won' : `Won ${format.money(payout)}`;
    case 'void':
      return `Void, stake returned${voidReason ? `: ${VOID_WORDS[voidReason] ?? voidReason.replaceAll('_', ' ')}` : ''}`;
    default:
      return WORDS[status];
  }
}

/** @param {string} name @param {string} words */
function text(name, words) {
  const element = document.createElement('span');
  element.className = name;
  element.textContent = words;
  return element;
}
