import { ask, Problem, problemOf, untilAnswered } from './api.js';
import { objection } from './sign_in_text.js';

/**
 * Who is betting. The wallet signs in when it has to, and the page then sends the token it got,
 * kept in memory only; after a reload the site's cookie says who this is, where it was stored.
 *
 * @typedef {import('./wallet.js').Wallet} Wallet
 * @typedef {{address: string, userId: string, balance: number | null}} Account
 *   balance in cents, null: not known yet
 * @typedef {{headers: Record<string, string>}} Pass what a request of this session carries
 * @typedef {'asking' | 'out' | 'arriving' | 'in' | 'leaving' | 'impossible'} SessionState
 */

/** Two answers that come this close may have overtaken each other on their ways. */
const OVERTAKING_MS = 10_000;
/** Then the balance is read after a pause in what arrives. */
const READ_AFTER_MS = 1_000;

/** @type {Pass} */
const COOKIE = { headers: {} };

export class Session {
  #wallet;
  #host;
  #onChange;
  /** @type {Problem | null} */ #walletProblem = null;
  /** @type {Pass | null} */ #pass = null;
  /** @type {Account | null} */ #account = null;
  /** @type {Promise<void> | null} */ #restoring = null;
  /** @type {Promise<void> | null} */ #arriving = null;
  #leaving = false;
  /** When the bet was placed whose balance is shown, Unix ms. */ #balanceAsOf = -Infinity;
  #balancesTaken = 0;
  /** When a bet's answer and the stream last told a balance: performance.now(). */
  #told = { answer: -Infinity, stream: -Infinity };
  /** @type {number | undefined} */ #readTimer;

  /**
   * @param {Promise<Wallet>} wallet
   * @param {{host: string, onChange: () => void}} page host as in `location.host`
   */
  constructor(wallet, { host, onChange }) {
    this.#wallet = wallet;
    this.#host = host;
    this.#onChange = onChange;
    wallet.catch((problem) => {
      this.#walletProblem = problem;
      onChange();
    });
  }

  /** @returns {SessionState} */
  get state() {
    if (this.#leaving) return 'leaving';
    if (this.#account !== null) return 'in';
    if (this.#restoring !== null) return 'asking';
    if (this.#walletProblem !== null) return 'impossible';
    return this.#arriving === null ? 'out' : 'arriving';
  }

  get account() {
    return this.#account;
  }

  /** Why there is no signing in here, null when there is. */
  get walletProblem() {
    return this.#walletProblem;
  }

  /** What the stream is told, null when only the cookie knows. @returns {string | null} */
  get token() {
    return this.#pass?.headers.Authorization?.replace('Bearer ', '') ?? null;
  }

  /** Reads something of the account as it is now; null when signed out. @param {string} path */
  async read(path) {
    const pass = this.#pass;
    if (pass === null) return null;
    const reply = await ask('GET', path, pass);
    return this.#pass === pass && reply?.status === 200 ? reply.body : null;
  }

  /** Finds out whether the cookie still holds a session. */
  restore() {
    this.#restoring = this.#restore().finally(() => {
      this.#restoring = null;
      this.#onChange();
    });
  }

  /**
   * Signs in, unless that is done: the pass for the next request. Throws a Problem.
   * @returns {Promise<Pass>}
   */
  async begin() {
    await this.#restoring;
    if (this.#pass === null || this.#arriving !== null) await this.#arrive();
    return this.#needPass();
  }

  /**
   * Another pass in place of one that was refused, the same for all who ask. Throws a Problem.
   * @param {Pass} refused @returns {Promise<Pass>}
   */
  async renew(refused) {
    if (this.#pass === refused) await this.#arrive();
    return this.#needPass();
  }

  /** Signs out; the wallet stays. Throws a Problem, and then the session lives on. */
  async end() {
    await this.#arriving?.catch(() => {});
    if (this.#pass === null) return;
    const { headers } = this.#pass;
    this.#leaving = true;
    this.#onChange();
    try {
      const reply = await untilAnswered(() => ask('POST', '/api/auth/logout', { headers }));
      // 401: there was no session (any more), which is just as good.
      if (reply?.status !== 204 && reply?.status !== 401) throw problemOf(reply);
      this.#pass = null;
      this.#account = null;
    } finally {
      this.#leaving = false;
      this.#onChange();
    }
  }

  /** Reads the balance anew, if the site tells it now. */
  async refresh() {
    const taken = this.#balancesTaken;
    const account = accountIn(await this.read('/api/me'));
    if (account === null) return;
    // A bet that was answered meanwhile may be missing in what was read before it.
    if (this.#balancesTaken !== taken) account.balance = this.#account?.balance ?? null;
    this.#account = account;
    this.#onChange();
  }

  /**
   * Takes the balance that came with an accepted bet, unless it is older than the one of another
   * bet: answers overtake each other, and a retry is told the balance of its first time.
   * @param {unknown} balance cents @param {unknown} placedAt RFC 3339
   */
  takeBalance(balance, placedAt) {
    const at = Date.parse(String(placedAt));
    if (this.#account === null || !Number.isSafeInteger(balance) || Number.isNaN(at)) return;
    const known = this.#account.balance ?? Infinity;
    if (at < this.#balanceAsOf || (at === this.#balanceAsOf && /** @type {number} */ (balance) > known)) return;
    this.#balanceAsOf = at;
    this.#take(/** @type {number} */ (balance), 'answer', 'stream');
  }

  /** Takes the balance that the stream told after a result. @param {number} balance cents */
  hearBalance(balance) {
    if (this.#account !== null) this.#take(balance, 'stream', 'answer');
  }

  /** Reads the balance when what arrives has paused, so that the last word is the books'. */
  refreshSoon() {
    clearTimeout(this.#readTimer);
    this.#readTimer = setTimeout(() => this.refresh(), READ_AFTER_MS);
  }

  /**
   * A bet's answer and the stream have no order between them: who came last may be the older.
   * @param {number} balance @param {'answer' | 'stream'} from @param {'answer' | 'stream'} other
   */
  #take(balance, from, other) {
    this.#told[from] = performance.now();
    if (this.#told[from] - this.#told[other] < OVERTAKING_MS) this.refreshSoon();
    this.#balancesTaken += 1;
    /** @type {Account} */ (this.#account).balance = balance;
    this.#onChange();
  }

  async #restore() {
    const reply = await untilAnswered(() => ask('GET', '/api/me'));
    const account = reply?.status === 200 ? accountIn(reply.body) : null;
    if (account === null) return;
    this.#pass = COOKIE;
    this.#account = account;
  }

  #arrive() {
    this.#arriving ??= this.#signIn().finally(() => {
      this.#arriving = null;
      this.#onChange();
    });
    this.#onChange();
    return this.#arriving;
  }

  async #signIn() {
    const wallet = await this.#wallet;
    const reply = await untilAnswered(() => this.#prove(wallet));
    const token = reply?.body?.token;
    if (reply?.status !== 200 || typeof token !== 'string') throw problemOf(reply);
    this.#pass = { headers: { Authorization: `Bearer ${token}` } };
    this.#account ??= { address: wallet.address, userId: String(reply.body.user_id), balance: null };
    // Whoever waits for the pass does not wait for the balance.
    this.refresh();
  }

  /** A nonce works once, so every attempt asks for one of its own. @param {Wallet} wallet */
  async #prove(wallet) {
    const { address } = wallet;
    const challenge = await ask('POST', '/api/auth/challenge', { body: { address } });
    if (challenge?.status !== 200) return challenge;
    const { nonce, message } = challenge.body ?? {};
    const against = objection(message, { host: this.#host, address, nonce });
    if (against) throw new Problem('wrong_sign_in_text', `Nothing was signed: ${against}`);
    const signature = await wallet.sign(new TextEncoder().encode(message));
    return ask('POST', '/api/auth/verify', { body: { address, nonce, signature } });
  }

  #needPass() {
    if (this.#pass === null) throw new Problem('signed_out', 'You have signed out meanwhile.');
    return this.#pass;
  }
}

/** @param {any} body of GET /api/me @returns {Account | null} */
function accountIn(body) {
  const { address, user_id: userId, balance } = body ?? {};
  return typeof address === 'string' && Number.isSafeInteger(balance)
    ? { address, userId: String(userId), balance }
    : null;
}
