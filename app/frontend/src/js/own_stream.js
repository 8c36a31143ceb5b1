/** @typedef {import('./messages.js').PersonalMessage} PersonalMessage */
/** @typedef {import('./session.js').Session} Session */

/** Without a stream that knows the trader, the site is asked all the same. */
const READ_ANYWAY_MS = 1_000;
const CAUGHT_UP_WITHIN_MS = 5_000;

/**
 * What the stream tells only the trader. It is introduced with the token, or knows the trader by
 * the cookie; then every change of bets and balance has the next number. After a reconnect it
 * resumes behind the last number. What cannot be resumed is read from the site, always after the
 * stream has begun to tell changes, so that none falls in between.
 */
export class OwnStream {
  #session;
  #send;
  #on;
  /** @type {string | null} */ #userId = null;
  /** @type {string | null} */ #toldToken = null;
  #epoch = '';
  /** Whom the server tells of, and the number it began with. @type {{userId: string, seq: number} | null} */
  #known = null;
  #follows = false;
  /** Up to here nothing is missing. @type {{epoch: string, seq: number} | null} */ #place = null;
  #highest = 0;
  #balanceSeq = 0;
  #catchingUp = false;
  /** @type {number | undefined} */ #timer;

  /**
   * @param {Session} session
   * @param {(message: {type: string}) => void} send
   * @param {{bet: (bet: import('./messages.js').Bet) => void, balance: (cents: number) => void,
   *   read: () => void, left: () => void}} on
   *   `read`: bets and balance have to be read; `left`: the trader is no longer this one
   */
  constructor(session, send, on) {
    this.#session = session;
    this.#send = send;
    this.#on = on;
  }

  /** A connection begins. @param {string} epoch */
  greeted(epoch) {
    this.#epoch = epoch;
    this.#known = null;
    this.#follows = false;
    this.#toldToken = null;
    this.#introduce();
  }

  sessionChanged() {
    const userId = this.#session.account?.userId ?? null;
    if (userId !== this.#userId) {
      const before = this.#userId;
      this.#userId = userId;
      this.#place = null;
      this.#follows = false;
      clearTimeout(this.#timer);
      if (before !== null) {
        // Whom the server knew by the session that has ended, it does not know any more.
        this.#known = null;
        this.#on.left();
      }
      if (userId !== null) this.#timer = setTimeout(this.#on.read, READ_ANYWAY_MS);
    }
    this.#introduce();
    this.#begin();
  }

  /** @param {PersonalMessage} message */
  take(message) {
    if (message.type === 'authenticated') {
      this.#epoch = message.epoch;
      this.#known = { userId: message.user_id, seq: message.seq };
      this.#begin();
    } else if (!this.#follows) {
      return; // of somebody else, or of nobody any more
    } else if (message.type === 'reset') {
      this.#epoch = message.epoch;
      this.#highest = message.seq;
      this.#balanceSeq = message.seq;
      this.#readAnew();
    } else {
      if (message.type === 'bet') this.#on.bet(message.bet);
      else if (message.seq > this.#balanceSeq) {
        this.#balanceSeq = message.seq;
        this.#on.balance(message.balance);
      }
      this.#count(message.seq);
    }
  }

  #introduce() {
    const { token } = this.#session;
    if (token === null || token === this.#toldToken || this.#userId === null) return;
    this.#toldToken = token;
    this.#send({ type: 'auth', token });
  }

  #begin() {
    if (this.#follows || this.#known === null || this.#known.userId !== this.#userId) return;
    this.#follows = true;
    clearTimeout(this.#timer);
    const { seq } = this.#known;
    if (this.#place?.epoch !== this.#epoch) {
      this.#highest = seq;
      this.#balanceSeq = seq;
      this.#readAnew();
      return;
    }
    this.#send({ type: 'resume', ...this.#place });
    this.#highest = Math.max(this.#highest, seq);
    this.#catchingUp = this.#place.seq < seq;
    if (this.#catchingUp) {
      this.#timer = setTimeout(() => this.#readAnew(), CAUGHT_UP_WITHIN_MS);
    }
  }

  /** @param {number} seq */
  #count(seq) {
    const { epoch, seq: complete } = /** @type {{epoch: string, seq: number}} */ (this.#place);
    this.#highest = Math.max(this.#highest, seq);
    if (seq === complete + 1) this.#place = { epoch, seq };
    else if (seq > complete && !this.#catchingUp) this.#readAnew();
    if (this.#catchingUp && this.#place.seq >= this.#known.seq) {
      this.#endCatchingUp();
      this.#place = { epoch, seq: this.#highest };
    }
  }

  #endCatchingUp() {
    this.#catchingUp = false;
    clearTimeout(this.#timer);
  }

  #readAnew() {
    this.#endCatchingUp();
    this.#place = { epoch: this.#epoch, seq: this.#highest };
    this.#on.read();
  }
}
