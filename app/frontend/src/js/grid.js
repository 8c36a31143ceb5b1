import { parseCell, phase } from './cell.js';
import * as format from './format.js';

/**
 * @typedef {import('./cell.js').Cell} Cell
 * @typedef {import('./messages.js').GridOffer} GridOffer
 * @typedef {import('./view.js').View} View
 * @typedef {import('./taps.js').BetState} BetState
 *
 * @typedef {{cell: Cell, button: HTMLButtonElement, offered: boolean, rate: string | null,
 *   bet: BetState | null}} Entry `rate` is what the cell pays now, null while it is not offered
 * @typedef {{start: number, end: number, anchor: number, element: HTMLElement, phase: string,
 *   width: number, entries: Map<string, Entry>}} Column
 */

const STEADY_HAND_PX = 12;
/** In these the cell is the trader's to tap, if it is offered. */
const FREE = new Set([null, 'refused']);
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/**
 * The cells as buttons over the chart, one element per column, moved each frame. A cell stays
 * while its column is on the way to the line of now, one with a bet until it leaves the stage.
 * One cell at a time is in the tab order; the arrow keys move over those in sight.
 */
export class Grid {
  #root;
  #on;
  /** @type {Map<number, Column>} by start */ #columns = new Map();
  /** @type {Map<string, Column>} by cell id */ #columnOf = new Map();
  /** @type {number[]} */ #offeredStarts = [];
  /** @type {number | null} */ #step = null;
  #columnMs = 5_000;
  #zoom = -1;
  #takesBets = false;
  #stake = '';
  /** @type {Entry | null} */ #current = null;
  /** @type {{id: string, rate: string | null, x: number, y: number} | null} */ #pressed = null;
  /** @type {View | null} */ #view = null;

  /**
   * @param {HTMLElement} root
   * @param {{tap: (cell: Cell, rate: string | null) => void, closed: (why: string) => void}} on
   *   told the rate that the cell showed when it was tapped, or why it cannot be tapped
   *   ('' while the whole market takes no taps)
   */
  constructor(root, on) {
    this.#root = root;
    this.#on = on;
    root.addEventListener('pointerdown', (event) => this.#press(event));
    root.addEventListener('click', (event) => this.#click(event));
    root.addEventListener('keydown', (event) => this.#move(event));
    root.addEventListener('focusin', (event) => {
      const entry = this.#entryOf(event.target);
      if (entry) this.#setCurrent(entry);
      else if (event.target === root) this.#focus(this.#current);
    });
  }

  /** Row height in cents (the least one where columns differ), null without cells. */
  get step() {
    return this.#step;
  }

  get columnMs() {
    return this.#columnMs;
  }

  /** The starts of the columns on the stage, Unix ms, in order. */
  get starts() {
    return [...this.#columns.keys()].sort((a, b) => a - b);
  }

  /** @param {number} now */
  hasOpenCells(now) {
    return this.#offeredStarts.some((start) => start - now > this.#columnMs);
  }

  /** @param {GridOffer} offer @param {number} now Unix ms, the server's */
  update(offer, now) {
    for (const column of this.#columns.values()) {
      for (const entry of column.entries.values()) entry.offered = false;
    }
    const starts = new Set();
    let step = Infinity;
    for (const { cell_id: id, reward_rate: rate } of offer.cells) {
      const cell = parseCell(id);
      if (cell === null || now >= cell.end) continue;
      const entry = this.#entry(cell);
      entry.offered = true;
      this.#setRate(entry, typeof rate === 'string' ? rate : null);
      starts.add(cell.start);
      step = Math.min(step, cell.high - cell.low);
      this.#columnMs = cell.end - cell.start;
    }
    this.#offeredStarts = [...starts];
    if (step < Infinity) this.#step = step;
    for (const column of this.#columns.values()) {
      for (const entry of column.entries.values()) {
        if (!entry.offered) this.#setRate(entry, null);
        this.#refresh(column, entry);
      }
    }
  }

  /** @param {boolean} takesBets */
  setTakesBets(takesBets) {
    if (takesBets === this.#takesBets && this.#root.dataset.taps) return;
    this.#takesBets = takesBets;
    this.#root.dataset.taps = takesBets ? 'on' : 'off';
    this.#refreshAll();
  }

  /** @param {number} cents the amount a tap would stake, shown on the cell before it is tapped */
  setStake(cents) {
    this.#stake = format.money(cents);
    for (const column of this.#columns.values()) {
      for (const { button } of column.entries.values()) button.dataset.stake = this.#stake;
    }
  }

  /**
   * Shows a bet on its cell, also on one that is not offered (any more) as long as it is on the
   * stage. `note` is a second line where there is room.
   * @param {string} id @param {BetState | null} bet @param {string} [words] @param {string} [note]
   */
  mark(id, bet, words = '', note = '') {
    const cell = parseCell(id);
    if (cell === null) return;
    let entry = this.#columnOf.get(id)?.entries.get(id);
    if (entry === undefined && bet !== null && this.#isAhead(cell)) entry = this.#entry(cell);
    if (entry === undefined) return;
    entry.bet = bet;
    if (note) entry.button.dataset.note = note;
    else delete entry.button.dataset.note;
    this.#show(entry, words);
    this.#refresh(/** @type {Column} */ (this.#columnOf.get(id)), entry);
  }

  /** Whether a cell has not left the stage. @param {Cell} cell */
  #isAhead(cell) {
    return this.#view === null || this.#view.width === 0 || this.#view.x(cell.end) > 0;
  }

  /** Takes a refusal off again, unless the cell has been tapped since. @param {string} id */
  unmark(id) {
    if (this.#columnOf.get(id)?.entries.get(id)?.bet === 'refused') this.mark(id, null);
  }

  /** @param {View} view @param {number} clock Unix ms, the server's */
  frame(view, clock) {
    this.#view = view;
    const zoomed = view.zoom !== this.#zoom;
    this.#zoom = view.zoom;
    for (const column of this.#columns.values()) {
      const left = view.x(column.start);
      const right = view.x(column.end);
      const now = phase(column, clock);
      if (now !== column.phase) this.#setPhase(column, now);
      if (right < 0 || (now === 'past' && !hasBet(column))) {
        this.#remove(column);
        continue;
      }
      const y = view.y(column.anchor);
      column.element.style.transform = `translate3d(${left.toFixed(2)}px, ${y.toFixed(2)}px, 0)`;
      if (Math.abs(right - left - column.width) > 0.2) {
        column.width = right - left;
        column.element.style.width = `${column.width.toFixed(1)}px`;
      }
      if (zoomed) for (const entry of column.entries.values()) this.#place(column, entry, view);
    }
  }

  /** @param {Cell} cell @returns {Entry} */
  #entry(cell) {
    const column = this.#columns.get(cell.start) ?? this.#newColumn(cell);
    const known = column.entries.get(cell.id);
    if (known) return known;
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'cell';
    button.tabIndex = -1;
    button.dataset.cellId = cell.id;
    button.dataset.stake = this.#stake;
    /** @type {Entry} */
    const entry = { cell, button, offered: false, rate: null, bet: null };
    column.entries.set(cell.id, entry);
    this.#columnOf.set(cell.id, column);
    if (this.#view) this.#place(column, entry, this.#view);
    column.element.append(button);
    return entry;
  }

  /** @param {Cell} cell @returns {Column} */
  #newColumn(cell) {
    const element = document.createElement('div');
    element.className = 'column';
    element.setAttribute('role', 'group');
    element.setAttribute(
      'aria-label', `${format.time(cell.start)} to ${format.time(cell.end)}`,
    );
    const column = {
      start: cell.start, end: cell.end, anchor: cell.high, element, phase: '', width: 0,
      entries: new Map(),
    };
    this.#columns.set(cell.start, column);
    const next = this.starts.find((start) => start > cell.start);
    this.#root.insertBefore(element, next ? this.#columns.get(next)?.element ?? null : null);
    return column;
  }

  #place(column, { cell, button }, view) {
    button.style.top = `${((column.anchor - cell.high) * view.pxPerCent + 1).toFixed(1)}px`;
    button.style.height = `${((cell.high - cell.low) * view.pxPerCent - 2).toFixed(1)}px`;
  }

  #remove(column) {
    column.element.remove();
    this.#columns.delete(column.start);
    for (const id of column.entries.keys()) this.#columnOf.delete(id);
  }

  #setPhase(column, now) {
    column.phase = now;
    column.element.dataset.phase = now;
    for (const entry of column.entries.values()) this.#refresh(column, entry);
  }

  #refreshAll() {
    for (const column of this.#columns.values()) {
      for (const entry of column.entries.values()) this.#refresh(column, entry);
    }
  }

  /** @param {Column} column @param {Entry} entry */
  #isOpen(column, entry) {
    if (entry.bet === 'unknown') return this.#takesBets;
    return this.#takesBets && entry.offered && column.phase === 'open' && FREE.has(entry.bet);
  }

  /** Why a cell takes no tap; null for one with a bet: that says it itself. */
  #whyClosed(column, entry) {
    if (!FREE.has(entry.bet)) return null;
    if (!this.#takesBets) return '';
    return column.phase === 'open'
      ? 'This cell is not offered at the moment.'
      : 'This column takes no more bets.';
  }

  /** Brings a button's state in line; a cell that closes passes the keyboard's focus on. */
  #refresh(column, entry) {
    const open = this.#isOpen(column, entry);
    const disabled = String(!open);
    if (entry.button.getAttribute('aria-disabled') !== disabled) {
      entry.button.setAttribute('aria-disabled', disabled);
    }
    const words = [
      format.band(entry.cell.low, entry.cell.high),
      entry.rate && `pays ${Number(entry.rate)} times`,
      entry.bet && `${entry.bet} ${entry.button.textContent} ${entry.button.dataset.note ?? ''}`.trim(),
    ].filter(Boolean).join(', ');
    if (entry.button.ariaLabel !== words) entry.button.ariaLabel = words;
    const goesOn = column.phase === 'open' || column.phase === '';
    if (entry === this.#current && !goesOn) this.#passOn(entry);
    if (this.#current === null && open) this.#setCurrent(entry);
  }

  /** The nearest open cell after this one's column becomes current. @param {Entry} from */
  #passOn(from) {
    const held = document.activeElement === from.button;
    const next = this.#nearest(from, (cell) => cell.start > from.cell.start);
    from.button.tabIndex = -1;
    this.#current = null;
    if (next === null) return;
    this.#setCurrent(next);
    if (held) this.#focus(next);
  }

  #setCurrent(entry) {
    if (this.#current) this.#current.button.tabIndex = -1;
    this.#current = entry;
    entry.button.tabIndex = 0;
  }

  #focus(entry) {
    entry?.button.focus({ preventScroll: true });
  }

  /** @param {Entry} entry @param {string | null} rate */
  #setRate(entry, rate) {
    if (entry.rate === rate) return;
    entry.rate = rate;
    if (rate === null) delete entry.button.dataset.rate;
    else entry.button.dataset.rate = rate;
    if (entry.bet === null) this.#show(entry, '');
  }

  /** @param {Entry} entry @param {string} words */
  #show(entry, words) {
    if (entry.bet === null) delete entry.button.dataset.bet;
    else entry.button.dataset.bet = entry.bet;
    entry.button.textContent = words || (entry.rate === null ? '' : format.rate(entry.rate));
  }

  /** @param {EventTarget | null} target @returns {Entry | null} */
  #entryOf(target) {
    const id = target instanceof Element && target.closest('button')?.dataset.cellId;
    return id ? this.#columnOf.get(id)?.entries.get(id) ?? null : null;
  }

  #press(event) {
    const entry = event.isPrimary ? this.#entryOf(event.target) : null;
    this.#pressed = entry && {
      id: entry.cell.id, rate: entry.rate, x: event.clientX, y: event.clientY,
    };
  }

  /** The cells move: what counts is the cell under the finger when it came down. */
  #click(event) {
    const pressed = this.#pressed;
    this.#pressed = null;
    let entry = this.#entryOf(event.target);
    let rate = entry?.rate ?? null;
    if (event.detail > 0 && pressed) {
      const moved = Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y);
      if (moved > STEADY_HAND_PX) return;
      entry = this.#columnOf.get(pressed.id)?.entries.get(pressed.id) ?? null;
      rate = pressed.rate;
    }
    if (entry === null) return;
    const column = /** @type {Column} */ (this.#columnOf.get(entry.cell.id));
    this.#setCurrent(entry);
    if (this.#isOpen(column, entry)) {
      this.#on.tap(entry.cell, rate);
    } else {
      const why = this.#whyClosed(column, entry);
      if (why !== null) this.#on.closed(why);
    }
  }

  #move(event) {
    const direction = MOVES[event.key];
    if (!direction || event.altKey || event.ctrlKey || event.metaKey) return;
    const from = this.#entryOf(event.target) ?? this.#current;
    if (from === null) return;
    event.preventDefault();
    const [right, up] = direction;
    const { start, low } = from.cell;
    const next = this.#nearest(from, (cell) => (
      right !== 0 ? (cell.start - start) * right > 0 : cell.start === start && (cell.low - low) * up > 0
    ));
    this.#focus(next);
  }

  /** Nearest by column first, then by price. @param {Entry} from @param {(cell: Cell) => boolean} fits */
  #nearest(from, fits) {
    let best = null;
    let least = Infinity;
    const middle = (cell) => cell.low + cell.high;
    for (const column of this.#columns.values()) {
      if (column.phase !== 'open') continue;
      for (const entry of column.entries.values()) {
        if (!entry.offered || !fits(entry.cell) || !this.#inSight(entry.cell)) continue;
        const distance = Math.abs(entry.cell.start - from.cell.start) * 1e6
          + Math.abs(middle(entry.cell) - middle(from.cell));
        if (distance < least) [best, least] = [entry, distance];
      }
    }
    return best;
  }

  /** At least the cell's middle is on the stage. @param {Cell} cell */
  #inSight(cell) {
    const view = this.#view;
    if (view === null) return true;
    const x = view.x((cell.start + cell.end) / 2);
    const y = view.y((cell.low + cell.high) / 2);
    return x > 0 && x < view.width && y > 0 && y < view.height;
  }

  /** Puts the tab stop on the cell level with the price, unless the keyboard is in use. */
  centreOn(cents) {
    if (this.#root.contains(document.activeElement) && document.activeElement !== this.#root) return;
    let best = null;
    for (const start of this.starts) {
      const column = /** @type {Column} */ (this.#columns.get(start));
      if (column.phase !== 'open') continue;
      for (const entry of column.entries.values()) {
        if (!entry.offered) continue;
        const away = Math.abs(entry.cell.low + entry.cell.high - 2 * cents);
        if (best === null || away < best.away) best = { entry, away };
      }
      if (best) break;
    }
    if (best && best.entry !== this.#current) this.#setCurrent(best.entry);
  }
}

/** @param {Column} column */
const hasBet = (column) => [...column.entries.values()].some(({ bet }) => bet !== null);

