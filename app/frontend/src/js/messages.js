/**
 * What arrives on the WebSocket, checked. A message that is not understood is dropped, so that
 * neither a newer server nor a broken one can stop the page.
 *
 * @typedef {{t: number, price: number, low: number, high: number}} Bar
 *   `t` Unix ms; the bar covers [t, t+100). Prices in cents.
 * @typedef {{start: number, width: number, step: number}} Column start and width in s, step in cents
 * @typedef {{cell_id: string, reward_rate: string | null}} Offer
 * @typedef {{columns: Column[], cells: Offer[]}} GridOffer
 * @typedef {'pending' | 'confirmed' | 'won' | 'lost' | 'void' | 'insufficient_funds'} BetStatus
 * @typedef {{betId: string, cellId: string, amount: number, status: BetStatus, rate: string | null,
 *   payout: number | null, placedAt: number, voidReason: string}} Bet
 *   amount and payout in cents; `rate` as a decimal, null until it is fixed; `placedAt` Unix ms
 * @typedef {{state: string, reason: string, retry_in_ms: number | null}} MarketSays
 * @typedef {{type: 'hello', epoch: string, server_time: string, price: Bar | null, bars: Bar[],
 *   grid: GridOffer} & MarketSays} Hello
 * @typedef {{type: 'price'} & Bar} Price
 * @typedef {{type: 'grid'} & GridOffer} GridMessage
 * @typedef {{type: 'status'} & MarketSays} Status
 * @typedef {{type: 'pong', server_time: string}} Pong
 * @typedef {{type: 'authenticated', user_id: string, epoch: string, seq: number}} Authenticated
 * @typedef {{type: 'bet', seq: number, bet: Bet}} BetMessage one's own bet has changed
 * @typedef {{type: 'balance', seq: number, balance: number}} BalanceMessage cents
 * @typedef {{type: 'reset', epoch: string, seq: number}} Reset what was missed cannot be told any
 *   more: read it anew, from this number on
 * @typedef {Authenticated | BetMessage | BalanceMessage | Reset} PersonalMessage
 * @typedef {Hello | Price | GridMessage | Status | Pong | PersonalMessage} Message
 */

const BET_STATUSES = new Set(
  ['pending', 'confirmed', 'won', 'lost', 'void', 'insufficient_funds'],
);

/** A bet as the stream and the API tell it. @param {any} value @returns {Bet | null} */
export function readBet(value) {
  const { bet_id: betId, cell_id: cellId, amount, status, reward_rate: rate } = value ?? {};
  const placedAt = Date.parse(String(value?.placed_at));
  const reason = value?.void_reason ?? value?.evidence?.void_reason;
  if (typeof betId !== 'string' || typeof cellId !== 'string' || !BET_STATUSES.has(status)) return null;
  if (!Number.isSafeInteger(amount) || Number.isNaN(placedAt)) return null;
  return {
    betId,
    cellId,
    amount,
    status,
    placedAt,
    rate: typeof rate === 'string' ? rate : null,
    payout: Number.isSafeInteger(value.payout_amount) ? value.payout_amount : null,
    voidReason: typeof reason === 'string' ? reason : '',
  };
}

/** @param {unknown} value @returns {Bar | null} */
function bar(value) {
  if (typeof value !== 'object' || value === null) return null;
  const { t, price, low = price, high = price } = /** @type {Bar} */ (value);
  return Number.isFinite(t) && [price, low, high].every((n) => Number.isSafeInteger(n) && n > 0)
    ? { t, price, low, high }
    : null;
}

/** @param {any} value @returns {MarketSays} */
function marketSays(value) {
  return {
    state: String(value.state),
    reason: typeof value.reason === 'string' ? value.reason : '',
    retry_in_ms: Number.isFinite(value.retry_in_ms) ? value.retry_in_ms : null,
  };
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
        epoch: String(raw.epoch),
        server_time: String(raw.server_time),
        price: bar(raw.price),
        bars: (Array.isArray(raw.bars) ? raw.bars : []).map(bar).filter((b) => b !== null),
        grid: gridOffer(raw.grid),
        ...marketSays(raw),
      };
    case 'price': {
      const known = bar(raw);
      return known && { type: 'price', ...known };
    }
    case 'grid':
      return { type: 'grid', ...gridOffer(raw) };
    case 'status':
      return { type: 'status', ...marketSays(raw) };
    case 'pong':
      return { type: 'pong', server_time: String(raw.server_time) };
    case 'authenticated':
      return Number.isSafeInteger(raw.seq)
        ? {
          type: 'authenticated', user_id: String(raw.user_id), epoch: String(raw.epoch),
          seq: raw.seq,
        }
        : null;
    case 'bet': {
      const bet = readBet(raw);
      return bet && Number.isSafeInteger(raw.seq) ? { type: 'bet', seq: raw.seq, bet } : null;
    }
    case 'balance':
      return Number.isSafeInteger(raw.seq) && Number.isSafeInteger(raw.balance)
        ? { type: 'balance', seq: raw.seq, balance: raw.balance }
        : null;
    case 'reset':
      return Number.isSafeInteger(raw.seq)
        ? { type: 'reset', epoch: String(raw.epoch), seq: raw.seq }
        : null;
    default:
      return null;
  }
}
