/** Numbers and times as a trader reads them. Prices and stakes are integer cents. */

const dollars = new Intl.NumberFormat('en-US', { style: 'currency', currency: 'USD' });
const wholeDollars = new Intl.NumberFormat('en-US', {
  style: 'currency', currency: 'USD', maximumFractionDigits: 0,
});
const percent = new Intl.NumberFormat('en-US', {
  style: 'percent', minimumFractionDigits: 2, maximumFractionDigits: 2,
});
const clock = new Intl.DateTimeFormat('en-GB', {
  hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23',
});

/** @param {number} cents */
export const price = (cents) => dollars.format(cents / 100);

/** Whole dollars without cents: $5, $84,210; otherwise with them. @param {number} cents */
export const money = (cents) => (cents % 100 === 0 ? wholeDollars : dollars).format(cents / 100);

/** For a cell: from $100 on without cents, never rounded up. @param {number} cents */
export const brief = (cents) => money(cents < 10_000 ? cents : cents - (cents % 100));

/** Always with its cents: $1,000.00. @param {number} cents */
export const balance = price;

/** @param {string} address base58 */
export const shortAddress = (address) => `${address.slice(0, 4)}…${address.slice(-4)}`;

/** @param {number} low cents @param {number} high cents */
export const band = (low, high) => `${money(low)} – ${money(high)}`;

/** @param {number} ms Unix time */
export const time = (ms) => clock.format(ms);

/** How the price moved: "+$12.40 (+0.01%)". @param {number} from cents @param {number} to cents */
export function change(from, to) {
  const by = to - from;
  const sign = by > 0 ? '+' : by < 0 ? '−' : '';
  return `${sign}${price(Math.abs(by))} (${sign}${percent.format(Math.abs(by) / from)})`;
}

/** A reward rate as the API gives it ("2.3521") in a cell, never rounded up: "2.35". @param {string} rate */
export function rate(rate) {
  const digits = Number(rate) < 10 ? 2 : 1;
  const scale = 10 ** digits;
  return (Math.floor(Number(rate) * scale + 1e-6) / scale).toFixed(digits);
}
