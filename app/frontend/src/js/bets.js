import { backoff } from './backoff.js';

/**
 * Placing a bet. The same key and body are sent again until there is an answer, so a lost answer
 * never becomes a second bet.
 *
 * @typedef {{cellId: string, amount: number, key: string}} Bet amount in cents
 * @typedef {{kind: 'accepted', betId: string}
 *   | {kind: 'refused', words: string, code: string}
 *   | {kind: 'unknown', words: string}} Outcome
 *   `unknown`: no answer came, the bet may stand; asking again with the same key tells
 */

const ATTEMPTS = 5;
const RETRY = { first: 400, limit: 4_000 };
const LONGEST_RETRY_AFTER_MS = 5_000;
const ANSWER_WITHIN_MS = 8_000;
const TRY_AGAIN = new Set([502, 503, 504]);

const UNKNOWN = 'No answer from the site. The bet may or may not stand: tap the cell again to find out.';

/**
 * @param {Bet} bet
 * @param {(attempt: number, of: number) => void} [onRetry]
 * @returns {Promise<Outcome>}
 */
export async function placeBet(bet, onRetry = () => {}) {
  let inDoubt = false;
  /** @type {Reply | null} */ let reply = null;
  for (let attempt = 1; attempt <= ATTEMPTS; attempt += 1) {
    if (attempt > 1) {
      const wait = reply?.retryAfterMs ?? backoff(attempt - 2, RETRY);
      if (wait > LONGEST_RETRY_AFTER_MS) break;
      onRetry(attempt, ATTEMPTS);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
    reply = await ask(bet);
    inDoubt ||= reply === null || (reply.status !== 202 && reply.code === '');
    if (reply?.status === 202) return accepted(reply);
    if (reply !== null && !TRY_AGAIN.has(reply.status)) return refused(reply);
  }
  return reply === null || inDoubt ? { kind: 'unknown', words: UNKNOWN } : refused(reply);
}

/** @typedef {{status: number, body: any, code: string, retryAfterMs: number | null}} Reply */

/** @param {Bet} bet @returns {Promise<Reply | null>} null when nothing came back */
async function ask({ cellId, amount, key }) {
  try {
    const response = await fetch('/api/bets', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'Idempotency-Key': key },
      body: JSON.stringify({ cell_id: cellId, amount }),
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
      cache: 'no-store',
    });
    const body = await readJson(response);
    const retryAfter = Number(response.headers.get('Retry-After') ?? NaN);
    return {
      status: response.status,
      body,
      code: typeof body?.code === 'string' ? body.code : '',
      retryAfterMs: Number.isFinite(retryAfter) ? Math.max(0, retryAfter * 1_000) : null,
    };
  } catch {
    return null;
  }
}

/** What is not JSON (a proxy's own page) is no answer of ours. @param {Response} response */
async function readJson(response) {
  const type = response.headers.get('Content-Type') ?? '';
  if (!/^application\/(problem\+)?json\b/.test(type)) return null;
  try {
    return await response.json();
  } catch {
    return null;
  }
}

/** @param {Reply} reply @returns {Outcome} */
function accepted({ body }) {
  return typeof body?.bet_id === 'string'
    ? { kind: 'accepted', betId: body.bet_id }
    : { kind: 'unknown', words: UNKNOWN };
}

/** @param {Reply} reply @returns {Outcome} */
function refused({ status, body, code }) {
  const words = [body?.detail, body?.title].find((text) => typeof text === 'string' && text !== '');
  return {
    kind: 'refused',
    code,
    words: words ?? `The site refused the bet (${status}).`,
  };
}
