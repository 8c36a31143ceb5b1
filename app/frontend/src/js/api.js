import { backoff } from './backoff.js';

/**
 * Requests to the API, and the patience with it that all of them share.
 *
 * @typedef {{status: number, body: any, code: string, retryAfterMs: number | null}} Reply
 *   `code` of a problem, '' for everything that is none of ours
 */

const ATTEMPTS = 5;
const RETRY = { first: 400, limit: 4_000 };
const LONGEST_RETRY_AFTER_MS = 5_000;
const ANSWER_WITHIN_MS = 8_000;
const TRY_AGAIN = new Set([502, 503, 504]);

/** Why something the trader asked for was not done; the message is for them to read. */
export class Problem extends Error {
  /** @param {string} code @param {string} words */
  constructor(code, words) {
    super(words);
    this.name = 'Problem';
    this.code = code;
  }
}

/**
 * @param {'GET' | 'POST'} method @param {string} path
 * @param {{headers?: Record<string, string>, body?: object}} [what]
 * @returns {Promise<Reply | null>} null when nothing came back
 */
export async function ask(method, path, { headers = {}, body } = {}) {
  try {
    const response = await fetch(path, {
      method,
      headers: body ? { 'Content-Type': 'application/json', ...headers } : headers,
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
      cache: 'no-store',
    });
    const answer = await readJson(response);
    const retryAfter = Number(response.headers.get('Retry-After') ?? NaN);
    return {
      status: response.status,
      body: answer,
      code: typeof answer?.code === 'string' ? answer.code : '',
      retryAfterMs: Number.isFinite(retryAfter) ? Math.max(0, retryAfter * 1_000) : null,
    };
  } catch {
    return null;
  }
}

/**
 * Does the same again while there is no answer or a passing trouble, five times in all, waiting
 * as the site says or with jittered backoff. A wait longer than anybody would sit out ends it.
 *
 * @param {() => Promise<Reply | null>} once
 * @param {(attempt: number, of: number) => void} [onRetry]
 * @returns {Promise<Reply | null>} the last reply
 */
export async function untilAnswered(once, onRetry = () => {}) {
  for (let attempt = 1; ; attempt += 1) {
    const reply = await once();
    if (attempt === ATTEMPTS || (reply !== null && !TRY_AGAIN.has(reply.status))) return reply;
    const wait = reply?.retryAfterMs ?? backoff(attempt - 1, RETRY);
    if (wait > LONGEST_RETRY_AFTER_MS) return reply;
    onRetry(attempt + 1, ATTEMPTS);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** A refusal in the site's own words, if it has any. @param {Reply | null} reply */
export function problemOf(reply) {
  if (reply === null) return new Problem('', 'No answer from the site.');
  const { status, body, code } = reply;
  const words = [body?.detail, body?.title].find((text) => typeof text === 'string' && text !== '');
  return new Problem(code, words ?? `The site refused it (${status}).`);
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
