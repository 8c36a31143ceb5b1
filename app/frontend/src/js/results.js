import { parseCell } from './cell.js';
import * as format from './format.js';

/** @typedef {import('./messages.js').Bet} Bet */

/** One sentence about the column that was settled last, read aloud when it changes. */
export class Results {
  #element;

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
  }

  /** @param {Bet} settled what was just settled @param {Bet[]} bets all of the trader's */
  show(settled, bets) {
    const start = parseCell(settled.cellId)?.start;
    const column = bets.filter(({ cellId }) => parseCell(cellId)?.start === start);
    const of = (status) => column.filter((bet) => bet.status === status);
    const paid = of('won').reduce((sum, { payout }) => sum + (payout ?? 0), 0);
    const back = of('void').reduce((sum, { amount }) => sum + amount, 0);
    const parts = [
      of('won').length && `${of('won').length} won, ${format.money(paid)} paid`,
      of('lost').length && `${of('lost').length} lost`,
      of('void').length && `${of('void').length} void, ${format.money(back)} returned`,
    ].filter(Boolean);
    this.#write(`${format.time(start ?? 0)}: ${parts.join('; ')}.`);
  }

  clear() {
    this.#write('');
  }

  /** @param {string} words */
  #write(words) {
    if (this.#element.textContent !== words) this.#element.textContent = words;
  }
}
