import { WINDOW_MS } from './price_store.js';

const FUTURE_MS = 45_000;
const COLUMN_PX = { least: 38, most: 92 };
const ROW_PX = { least: 32, most: 44 };
const ZOOM_HYSTERESIS = 0.15;
const ZOOM_EASE_MS = 180;
const PAN_EASE_MS = 420;
/** Shares of the height: how far the price may be off centre, and what the view leaves alone. */
const OFF_CENTRE = 0.2;
const CALM = 0.05;
const REDUCED_STEP_MS = 1_000;
/** Without a grid: at least this many cents up and down, so that a still price stays calm. */
const LEAST_REACH = 2_000;

/**
 * Where times and prices lie on the stage. The last minute runs up to the line of now, the cells
 * come towards it from the right. Past and future have a scale each, so that a minute of history
 * and columns wide enough for a thumb both fit a phone. The row height follows the grid's step,
 * and the view moves up and down with the price, calmly.
 */
export class View {
  width = 0;
  height = 0;
  now = 0;
  nowX = 0;
  /** Price in cents at half height. */ centre = 0;
  pxPerCent = 0;
  /** Counts changes of scale, for those who lay out by it. */ zoom = 0;

  #pastPxPerMs = 0;
  #futurePxPerMs = 0;
  #targetScale = 0;
  #following = false;

  /** @param {number} width @param {number} height plot size in CSS px, axes excluded */
  resize(width, height) {
    if (width === this.width && height === this.height) return;
    this.width = width;
    this.height = height;
    this.nowX = Math.round(width * (width < 600 ? 0.34 : 0.42));
    this.#pastPxPerMs = this.nowX / WINDOW_MS;
    this.pxPerCent = 0;
  }

  /** @param {number} t Unix ms */
  x(t) {
    const ahead = t - this.now;
    return this.nowX + ahead * (ahead > 0 ? this.#futurePxPerMs : this.#pastPxPerMs);
  }

  /** @param {number} cents */
  y(cents) {
    return this.height / 2 - (cents - this.centre) * this.pxPerCent;
  }

  /** The prices at the lower and upper edge. */
  get edges() {
    const half = this.height / 2 / this.pxPerCent;
    return { low: this.centre - half, high: this.centre + half };
  }

  /**
   * @param {{now: number, price: number | undefined, range: {low: number, high: number} | null,
   *   step: number | null, columnMs: number, elapsed: number, reduced: boolean}} frame
   */
  advance({ now, price, range, step, columnMs, elapsed, reduced }) {
    this.now = reduced ? Math.floor(now / REDUCED_STEP_MS) * REDUCED_STEP_MS : now;
    const future = (this.width - this.nowX) / FUTURE_MS;
    this.#futurePxPerMs = Math.min(
      Math.max(future, COLUMN_PX.least / columnMs), COLUMN_PX.most / columnMs,
    );
    if (price === undefined || this.height === 0) return;
    this.#scale(step, price, range, elapsed, reduced);
    this.#follow(price, range, elapsed, reduced);
  }

  /** Rows as high as the minute's range leaves room for, within what a thumb can hit. */
  #scale(step, price, range, elapsed, reduced) {
    const reach = range ? Math.max(range.high - price, price - range.low) : 0;
    const room = this.height * (0.46 + OFF_CENTRE);
    let wanted;
    if (step === null) {
      wanted = room / Math.max(reach, LEAST_REACH);
    } else {
      const rowPx = reach > 0 ? (room / reach) * step : ROW_PX.most;
      wanted = Math.min(Math.max(rowPx, ROW_PX.least), ROW_PX.most) / step;
    }
    if (Math.abs(wanted / this.#targetScale - 1) > ZOOM_HYSTERESIS || this.#targetScale === 0) {
      this.#targetScale = wanted;
    }
    if (this.pxPerCent === this.#targetScale) return;
    const gap = this.#targetScale - this.pxPerCent;
    const snap = reduced || this.pxPerCent === 0 || Math.abs(gap) < this.#targetScale * 0.003;
    this.pxPerCent = snap
      ? this.#targetScale
      : this.pxPerCent + gap * (1 - Math.exp(-elapsed / ZOOM_EASE_MS));
    this.zoom += 1;
  }

  /**
   * Keeps the minute's range in sight as far as that leaves the price near the middle. Holds still
   * for small differences, then moves until there is none.
   */
  #follow(price, range, elapsed, reduced) {
    const leeway = (this.height * OFF_CENTRE) / this.pxPerCent;
    const middle = range ? (range.low + range.high) / 2 : price;
    const wanted = Math.min(Math.max(middle, price - leeway), price + leeway);
    const off = Math.abs(wanted - this.centre) * this.pxPerCent;
    if (off > this.height || (reduced && off > this.height * CALM)) {
      this.centre = wanted;
      return;
    }
    if (off > this.height * CALM) this.#following = true;
    if (off < 1) this.#following = false;
    if (this.#following) {
      this.centre += (wanted - this.centre) * (1 - Math.exp(-elapsed / PAN_EASE_MS));
    }
  }
}
