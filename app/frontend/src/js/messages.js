/**
 * What arrives on the WebSocket, checked. A message that is not understood is dropped, so that
 * neither a newer server nor a broken one can stop the page.
 *
 * @typedef {{t: number, price: number, low: number, high: number}} Bar
 *   `t` Unix ms; the bar covers [t, t+100). Prices in cents.
 * @typedef {{start: number, width: number, step: number}} Column start and width in s, step in cents
 * @typedef {{cell_id: string, reward_rate: string | null}} Offer
 * @typedef {{columns: Column[], cells: Offer[]}} GridOffer
 * @typedef {{type: 'hello', server_time: string, price: Bar | null, bars: Bar[], grid: GridOffer,
 *   state: string}} Hello
 * @typedef {{type: 'price'} & Bar} Price
 * @typedef {{type: 'grid'} & GridOffer} GridMessage
 * @typedef {{type: 'status', state: string, reason: string, retry_in_ms: number | null}} Status
 * @typedef {{type: 'pong', server_time: string}} Pong
 * @typedef {Hello | Price | GridMessage | Status | Pong} Message
 */

/** @param {unknown} value @returns {Bar | null} */
function bar(value) {
  if (typeof value !== 'object' || value === null) return null;
  const { t, price, low = price, high = price } = /** @type {Bar} */ (value);
  return Number.isFinite(t) && [price, low, high].every((n) => Number.isSafeInteger(n) && n > 0)
    ? { t, price, low, high }
    : null;
}

/** @param {any} value @returns {GridOffer} */
function gridOffer(value) {
  const list = (items) => (Array.isArray(items) ? items : []);
  return {
    columns: list(value?.columns).filter((c) => Number.isFinite(c?.start) && c?.width > 0),
    cells: list(value?.cells).filter((c) => typeof c?.cell_id === 'string'),
  };
}

/** @param {unknown} text @returns {Message | null} */
export function parseMessage(text) {
  let raw;
  try {
    raw = JSON.parse(String(text));
  } catch {
    return null;
  }
  switch (raw?.type) {
    case 'hello':
      return {
        type: 'hello',
        server_time: String(raw.server_time),
        price: bar(raw.price),
        bars: (Array.isArray(raw.bars) ? raw.bars : []).map(bar).filter((b) => b !== null),
        grid: gridOffer(raw.grid),
        state: String(raw.state),
      };
    case 'price': {
      const known = bar(raw);
      return known && { type: 'price', ...known };
    }
    case 'grid':
      return { type: 'grid', ...gridOffer(raw) };
    case 'status':
      return {
        type: 'status',
        state: String(raw.state),
        reason: typeof raw.reason === 'string' ? raw.reason : '',
        retry_in_ms: Number.isFinite(raw.retry_in_ms) ? raw.retry_in_ms : null,
      };
    case 'pong':
      return { type: 'pong', server_time: String(raw.server_time) };
    default:
      return null;
  }
}
