import * as format from './format.js';

/**
 * A cell is its id: `btc-usd:<start, unix s>:<width s>:<low, cents>:<high, cents>`.
 *
 * @typedef {{id: string, start: number, end: number, low: number, high: number}} Cell
 *   start and end in Unix ms
 */

const CELL_ID = /^btc-usd:(\d{1,12}):(\d{1,6}):(\d{1,12}):(\d{1,12})$/;

/** @param {string} id @returns {Cell | null} */
export function parseCell(id) {
  const match = CELL_ID.exec(id);
  if (match === null) return null;
  const [start, width, low, high] = match.slice(1).map(Number);
  if (width === 0 || low >= high) return null;
  return { id, start: start * 1_000, end: (start + width) * 1_000, low, high };
}

/**
 * Where a window stands: the current column and the next one take no more bets.
 * @param {{start: number, end: number}} window @param {number} now Unix ms, the server's
 * @returns {'open' | 'locked' | 'running' | 'past'}
 */
export function phase({ start, end }, now) {
  if (now >= end) return 'past';
  if (now >= start) return 'running';
  return start - now > end - start ? 'open' : 'locked';
}

/** @param {Cell} cell */
export const describe = (cell) =>
  `${format.band(cell.low, cell.high)}, ${format.time(cell.start)} to ${format.time(cell.end)}`;
