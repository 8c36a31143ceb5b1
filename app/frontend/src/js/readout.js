import * as format from './format.js';

/**
 * The big price and what goes with it. `#price` carries `data-t` and `data-price` of the last
 * price that was drawn.
 */
export class Readout {
  #price = element('price');
  #change = element('change');
  #high = element('high');
  #low = element('low');

  /**
   * @param {import('./messages.js').Bar} bar
   * @param {{low: number, high: number, first: number} | null} minute
   */
  show(bar, minute) {
    this.#price.dataset.t = String(bar.t);
    this.#price.dataset.price = String(bar.price);
    write(this.#price, format.price(bar.price));
    if (minute === null) return;
    const moved = Math.sign(bar.price - minute.first);
    this.#change.dataset.direction = moved > 0 ? 'up' : moved < 0 ? 'down' : 'flat';
    write(this.#change, `${format.change(minute.first, bar.price)} in 60 s`);
    write(this.#high, format.price(minute.high));
    write(this.#low, format.price(minute.low));
  }
}

/** @param {string} id */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @param {HTMLElement} where @param {string} words */
function write(where, words) {
  if (where.textContent !== words) where.textContent = words;
}
