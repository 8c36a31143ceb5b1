import { ask, Problem, problemOf, untilAnswered } from './api.js';

/**
 * Placing a bet. The same key and body are sent again until there is an answer, so a lost answer
 * never becomes a second bet.
 *
 * @typedef {{cellId: string, amount: number, key: string, minRate?: string, inDoubt?: boolean}} Bet
 *   amount in cents; `minRate`: below it the site gives the stake back; `inDoubt`: an answer was
 *   lost, so the bet may stand
 * @typedef {{kind: 'accepted', betId: string, balance: unknown, placedAt: unknown}
 *   | {kind: 'refused', words: string, code: string}
 *   | {kind: 'unknown', words: string}} Outcome
 *   `unknown`: no answer came, the bet may stand; asking again with the same key tells
 */

/** The session's end, the rate limit: said before anybody looked whether the bet stands. */
const AT_THE_DOOR = new Set([401, 429]);

/** How far the rate may fall between the tap and the moment it is fixed, in per cent. */
export const RATE_TOLERANCE = 10;

/**
 * The least rate a tap agrees to: the one that was shown, lowered by the tolerance.
 * @param {string | null} shown a decimal with four digits @returns {string | undefined}
 */
export function leastRate(shown) {
  const basisPoints = Math.round(Number(shown ?? NaN) * 10_000);
  const least = Math.floor((basisPoints * (100 - RATE_TOLERANCE)) / 100);
  return least > 0 ? (least / 10_000).toFixed(4) : undefined;
}

const UNKNOWN = 'No answer from the site. The bet may or may not stand: tap the cell again to find out.';

/**
 * @param {Bet} bet
 * @param {import('./session.js').Session} session signs in when need be
 * @param {(attempt: number, of: number) => void} [onRetry]
 * @returns {Promise<Outcome>}
 */
export async function placeBet(bet, session, onRetry) {
  try {
    const reply = await untilAnswered(async () => {
      const reply = await send(bet, session);
      bet.inDoubt = leavesDoubt(reply, bet.inDoubt === true);
      return reply;
    }, onRetry);
    if (reply?.status === 202 && !bet.inDoubt) return accepted(reply.body);
    throw problemOf(reply);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (bet.inDoubt) return { kind: 'unknown', words: UNKNOWN };
    return { kind: 'refused', words: problem.message, code: problem.code };
  }
}

/** A session that has ended is begun anew, once. @returns {Promise<import('./api.js').Reply | null>} */
async function send({ cellId, amount, key, minRate }, session) {
  const attempt = ({ headers }) => ask('POST', '/api/bets', {
    headers: { ...headers, 'Idempotency-Key': key },
    body: { cell_id: cellId, amount, min_reward_rate: minRate },
  });
  const pass = await session.begin();
  const reply = await attempt(pass);
  return reply?.status === 401 ? attempt(await session.renew(pass)) : reply;
}

/**
 * Whether the bet may stand although nobody said so.
 * @param {import('./api.js').Reply | null} reply @param {boolean} before
 */
function leavesDoubt(reply, before) {
  if (reply === null) return true;
  const { status, code, body } = reply;
  if (status === 202) return typeof body?.bet_id !== 'string';
  if (code === '') return before || status < 400 || status >= 500;
  return before && (status >= 500 || AT_THE_DOOR.has(status));
}

/** @param {any} body @returns {Outcome} */
const accepted = ({ bet_id: betId, balance, placed_at: placedAt }) =>
  ({ kind: 'accepted', betId, balance, placedAt });
