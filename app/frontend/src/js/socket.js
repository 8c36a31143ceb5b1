import { backoff } from './backoff.js';
import { parseMessage } from './messages.js';

/** @typedef {import('./messages.js').Message} Message */

const RECONNECT = { first: 500, limit: 15_000 };
const SERVICE_RESTART = 1012;
/** Of these a wait is one before reconnecting; of others it is the market's, not ours. */
const CONNECTION_ENDS = new Set(['restart', 'maintenance']);
const RESTART_WAIT_MS = 1_000;
/** A connection that held this long starts the backoff anew when it is lost. */
const STAYED_MS = 5_000;
const HELLO_WITHIN_MS = 10_000;
const PING_AFTER_SILENCE_MS = 4_000;
const GIVE_UP_AFTER_SILENCE_MS = 10_000;
const PING_EVERY_MS = 30_000;
const WATCH_EVERY_MS = 1_000;

/**
 * One lasting connection to the stream: it comes back by itself, after the time the server named
 * or with jittered backoff. It is judged by its last message, never by "open".
 */
export class LiveSocket {
  #url;
  #onMessage;
  #onState;
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {number | undefined} */ #retryTimer;
  /** @type {number | null} */ #retryInMs = null;
  #waitIsTold = false;
  #attempt = 0;
  /** @type {number | null} */ #greetedAt = null;
  #lastMessage = 0;
  #lastPing = 0;

  /**
   * @param {string} url
   * @param {{onMessage: (message: Message, received: number) => void,
   *   onState: (state: 'live' | 'reconnecting') => void}} handlers `received`: performance.now()
   */
  constructor(url, { onMessage, onState }) {
    this.#url = url;
    this.#onMessage = onMessage;
    this.#onState = onState;
  }

  start() {
    this.#connect();
    setInterval(() => this.#watch(), WATCH_EVERY_MS);
    addEventListener('online', () => this.#connectNow());
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') this.#connectNow();
    });
  }

  #connect() {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    this.#greetedAt = null;
    this.#lastMessage = performance.now();
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#lost(event.code);
  }

  /** Somebody is looking, or the network is back: sit out only a wait the server asked for. */
  #connectNow() {
    if (this.#retryTimer !== undefined && !this.#waitIsTold) this.#connect();
  }

  /** @param {unknown} data */
  #receive(data) {
    const received = performance.now();
    this.#lastMessage = received;
    const message = parseMessage(data);
    if (message === null) return;
    if (message.type === 'status') {
      this.#retryInMs = CONNECTION_ENDS.has(message.reason) ? message.retry_in_ms : null;
    }
    if (message.type === 'hello') {
      this.#greetedAt = received;
      this.#retryInMs = null;
    }
    this.#onMessage(message, received);
    if (message.type === 'hello') {
      this.#onState('live');
      this.#ping(received);
    }
  }

  #watch() {
    if (this.#socket === null) return;
    const now = performance.now();
    const silence = now - this.#lastMessage;
    if (silence > (this.#greetedAt === null ? HELLO_WITHIN_MS : GIVE_UP_AFTER_SILENCE_MS)) {
      this.#lost(0);
    } else if (this.#greetedAt !== null) {
      const wait = silence > PING_AFTER_SILENCE_MS ? PING_AFTER_SILENCE_MS : PING_EVERY_MS;
      if (now - this.#lastPing > wait) this.#ping(now);
    }
  }

  /** @param {number} now */
  #ping(now) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#lastPing = now;
    this.send({ type: 'ping' });
  }

  /** Says it if there is a connection at this moment. @param {{type: string}} message */
  send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** When the last ping left, for the clock: performance.now(). */
  get pingedAt() {
    return this.#lastPing;
  }

  /** @param {number} code close code, 0 when we gave up on a silent connection */
  #lost(code) {
    const socket = this.#socket;
    if (socket === null) return;
    this.#socket = null;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close();
    this.#retryTimer = setTimeout(() => this.#connect(), this.#waitAfter(code));
    this.#onState('reconnecting');
  }

  /** @param {number} code */
  #waitAfter(code) {
    const told = this.#retryInMs ?? (code === SERVICE_RESTART ? RESTART_WAIT_MS : null);
    this.#retryInMs = null;
    this.#waitIsTold = told !== null;
    const stayed = this.#greetedAt !== null && performance.now() - this.#greetedAt > STAYED_MS;
    if (stayed) this.#attempt = 0;
    return told === null ? backoff(this.#attempt++, RECONNECT) : told * (1 + Math.random() / 4);
  }
}
