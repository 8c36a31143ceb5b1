import { parseCell } from './cell.js';
import * as format from './format.js';

/** @typedef {'sending' | 'pending' | 'refused' | 'unknown'} BetState */

const SHOWN = 12;
const WORDS = { sending: 'Sending', pending: 'Pending', refused: 'Refused', unknown: 'No answer' };

/** The list of this visit's taps, newest first. */
export class Taps {
  #list;
  #empty;

  /** @param {HTMLElement} list @param {HTMLElement} empty shown until the first tap */
  constructor(list, empty) {
    this.#list = list;
    this.#empty = empty;
  }

  /**
   * @param {{cellId: string, amount: number}} bet
   * @returns {(state: BetState, betId?: string) => void} updates this tap's line
   */
  add({ cellId, amount }) {
    const cell = parseCell(cellId);
    const line = document.createElement('li');
    line.dataset.cellId = cellId;
    line.append(
      text('band', cell ? format.band(cell.low, cell.high) : cellId),
      text('stake', format.money(amount)),
      text('window', cell ? `${format.time(cell.start)} to ${format.time(cell.end)}` : ''),
      text('state', ''),
    );
    this.#empty.hidden = true;
    this.#list.prepend(line);
    while (this.#list.children.length > SHOWN) this.#list.lastElementChild?.remove();
    const set = (state, betId = '') => {
      line.dataset.bet = state;
      if (betId) line.dataset.betId = betId;
      /** @type {Element} */ (line.lastElementChild).textContent = WORDS[state];
    };
    set('sending');
    return set;
  }
}

/** @param {string} name @param {string} words */
function text(name, words) {
  const element = document.createElement('span');
  element.className = name;
  element.textContent = words;
  return element;
}
