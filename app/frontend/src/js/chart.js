import * as format from './format.js';
import { BAR_MS, WINDOW_MS } from './price_store.js';

/** @typedef {import('./messages.js').Bar} Bar */
/** @typedef {import('./view.js').View} View */

const GAP_MS = 1_000;
const MAX_PIXEL_RATIO = 3;
const NICE = [1, 2, 2.5, 5];

/** Draws the last minute, the price of now and the two axes. It knows nothing of the cells. */
export class Chart {
  #canvas;
  #pen;
  #plot;
  #onResize;
  #width = 0;
  #height = 0;
  #ratio = 1;
  /** @type {Record<string, string>} */ #colours = {};
  #font = '';

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} plot the element whose box is the plot: what is outside it is axis
   * @param {(width: number, height: number) => void} onResize told the plot's size in CSS px
   */
  constructor(canvas, plot, onResize) {
    this.#canvas = canvas;
    this.#pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d', { alpha: true }));
    this.#plot = plot;
    this.#onResize = onResize;
    new ResizeObserver(() => this.#fit()).observe(canvas);
    for (const query of ['(prefers-color-scheme: light)', '(prefers-contrast: more)']) {
      matchMedia(query).addEventListener('change', () => this.#readTheme());
    }
    this.#readTheme();
    this.#fit();
  }

  #readTheme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.#colours = {
      line: colour('chart-line'),
      range: colour('chart-range'),
      fill: colour('chart-fill'),
      fillEnd: colour('chart-fill-end'),
      rule: colour('chart-rule'),
      now: colour('chart-now'),
      quiet: colour('quiet'),
      surface: colour('surface'),
      hairline: colour('hairline'),
    };
    this.#font = colour('font');
  }

  #fit() {
    this.#ratio = Math.min(devicePixelRatio || 1, MAX_PIXEL_RATIO);
    this.#width = this.#canvas.clientWidth;
    this.#height = this.#canvas.clientHeight;
    this.#canvas.width = Math.round(this.#width * this.#ratio);
    this.#canvas.height = Math.round(this.#height * this.#ratio);
    this.#onResize(this.#plot.clientWidth, this.#plot.clientHeight);
  }

  /**
   * @param {View} view
   * @param {{bars: Bar[], stale: boolean, step: number | null, ticks: number[]}} scene
   *   `ticks`: the times to name on the axis, Unix ms
   */
  draw(view, { bars, stale, step, ticks }) {
    if (Math.min(devicePixelRatio || 1, MAX_PIXEL_RATIO) !== this.#ratio) this.#fit();
    const pen = this.#pen;
    pen.setTransform(this.#ratio, 0, 0, this.#ratio, 0, 0);
    pen.clearRect(0, 0, this.#width, this.#height);
    pen.lineJoin = 'round';
    const last = bars.at(-1);
    this.#times(view, ticks);
    if (last === undefined || view.pxPerCent === 0) return;
    this.#prices(view, step, last.price);

    pen.save();
    pen.beginPath();
    pen.rect(0, 0, view.width, view.height);
    pen.clip();
    this.#rule(view.nowX, 0, view.nowX, view.height, this.#colours.now);
    this.#history(view, bars, stale);
    pen.restore();
    this.#current(view, last.price, stale);
  }

  /** The grid's rows as faint rules under the past, named on the right where there is room. */
  #prices(view, step, current) {
    const pen = this.#pen;
    const { low, high } = view.edges;
    const every = step ?? niceStep((high - low) / 8);
    const nameEvery = Math.max(1, Math.ceil(26 / (every * view.pxPerCent)));
    pen.font = `500 12px ${this.#font}`;
    pen.textAlign = 'left';
    pen.textBaseline = 'middle';
    const clearOf = view.y(current);
    for (let row = Math.ceil(low / every); row * every <= high; row += 1) {
      const y = view.y(row * every);
      this.#rule(0, y, view.nowX, y, this.#colours.rule);
      if (row % nameEvery !== 0 || Math.abs(y - clearOf) < 20 || y < 10) continue;
      if (y > view.height - 8) continue;
      pen.fillStyle = this.#colours.quiet;
      pen.fillText(format.money(row * every).slice(1), view.width + 9, y);
    }
    this.#rule(view.width, 0, view.width, view.height, this.#colours.hairline);
  }

  #times(view, ticks) {
    const pen = this.#pen;
    this.#rule(0, view.height, this.#width, view.height, this.#colours.hairline);
    pen.font = `400 12px ${this.#font}`;
    pen.textAlign = 'center';
    pen.textBaseline = 'middle';
    pen.fillStyle = this.#colours.quiet;
    const y = view.height + (this.#height - view.height) / 2;
    let free = 8;
    for (const t of ticks) {
      const text = format.time(t);
      const half = pen.measureText(text).width / 2;
      const x = view.x(t);
      if (x - half < free || x + half > view.width) continue;
      pen.fillText(text, x, y);
      free = x + half + 18;
    }
  }

  /** The bars: a ribbon from low to high, the closing prices as a line, nothing across a gap. */
  #history(view, bars, stale) {
    const pen = this.#pen;
    const end = (bar) => Math.min(bar.t + BAR_MS, view.now);
    const runs = split(bars, view.now - WINDOW_MS - GAP_MS);
    for (const run of runs) {
      const isLast = run === runs.at(-1);
      const lastX = view.x(end(run.at(-1)));
      pen.beginPath();
      for (const bar of run) pen.lineTo(view.x(end(bar)), view.y(bar.high) - 0.5);
      for (const bar of [...run].reverse()) pen.lineTo(view.x(end(bar)), view.y(bar.low) + 0.5);
      pen.closePath();
      pen.fillStyle = this.#colours.range;
      pen.fill();

      const line = new Path2D();
      for (const bar of run) line.lineTo(view.x(end(bar)), view.y(bar.price));
      if (isLast && !stale) line.lineTo(view.nowX, view.y(run.at(-1).price));

      const area = new Path2D(line);
      area.lineTo(isLast && !stale ? view.nowX : lastX, view.height);
      area.lineTo(view.x(end(run[0])), view.height);
      area.closePath();
      const fade = pen.createLinearGradient(0, 0, 0, view.height);
      fade.addColorStop(0, this.#colours.fill);
      fade.addColorStop(1, this.#colours.fillEnd);
      pen.fillStyle = fade;
      pen.fill(area);

      pen.strokeStyle = this.#colours.line;
      pen.lineWidth = 1.75;
      pen.stroke(line);

      if (isLast && stale) {
        pen.setLineDash([3, 5]);
        const y = view.y(run.at(-1).price);
        this.#rule(lastX, y, view.nowX, y, this.#colours.quiet);
        pen.setLineDash([]);
      }
    }
  }

  /** The price of now: a rule to the axis, a dot, a tag. */
  #current(view, price, stale) {
    const pen = this.#pen;
    const y = view.y(price);
    const colour = stale ? this.#colours.quiet : this.#colours.line;
    pen.setLineDash([2, 4]);
    this.#rule(view.nowX, y, view.width, y, this.#colours.quiet);
    pen.setLineDash([]);

    pen.beginPath();
    pen.arc(view.nowX, y, 7, 0, 2 * Math.PI);
    pen.fillStyle = this.#colours.range;
    pen.fill();
    pen.beginPath();
    pen.arc(view.nowX, y, 3.75, 0, 2 * Math.PI);
    pen.fillStyle = colour;
    pen.fill();

    const gutter = this.#width - view.width;
    pen.fillStyle = colour;
    pen.beginPath();
    pen.roundRect(view.width + 3, y - 11, gutter - 6, 22, 4);
    pen.fill();
    pen.fillStyle = this.#colours.surface;
    pen.font = `600 12px ${this.#font}`;
    pen.textAlign = 'left';
    pen.textBaseline = 'middle';
    pen.fillText(axisPrice(price, gutter), view.width + 9, y + 0.5, gutter - 14);
  }

  #rule(x0, y0, x1, y1, colour) {
    const pen = this.#pen;
    const crisp = (n) => Math.round(n) + 0.5;
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(x0 === x1 ? crisp(x0) : x0, y0 === y1 ? crisp(y0) : y0);
    pen.lineTo(x0 === x1 ? crisp(x1) : x1, y0 === y1 ? crisp(y1) : y1);
    pen.stroke();
  }
}

/** @param {number} cents @param {number} gutter px; a narrow one leaves out the dollar sign and cents */
const axisPrice = (cents, gutter) =>
  gutter < 80 ? format.price(cents).slice(1, -3) : format.price(cents).slice(1);

/** A round step of 1, 2, 2.5 or 5 times a power of ten. @param {number} least cents */
function niceStep(least) {
  const power = 10 ** Math.max(0, Math.floor(Math.log10(least)));
  return (NICE.find((n) => n * power >= least) ?? 10) * power;
}

/** The bars since a moment in runs without a gap. @param {Bar[]} bars @param {number} since */
function split(bars, since) {
  /** @type {Bar[][]} */ const runs = [];
  let previous = -Infinity;
  for (const bar of bars) {
    if (bar.t < since) continue;
    if (bar.t - previous > GAP_MS) runs.push([]);
    /** @type {Bar[]} */ (runs.at(-1)).push(bar);
    previous = bar.t;
  }
  return runs;
}
