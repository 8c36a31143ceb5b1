import * as format from './format.js';

/** @typedef {import('./session.js').Session} Session */

/** @type {Record<import('./session.js').SessionState, string>} */
const BUTTON = {
  asking: '', out: 'Start practising', arriving: 'Signing in', in: 'Sign out',
  leaving: 'Signing out', impossible: '',
};
const TAKES_CLICKS = new Set(['out', 'in']);

/** The corner of the page that says who is betting, with how much, and lets them in and out. */
export class AccountPanel {
  #root;
  #balance;
  #address;
  #button;

  /** @param {HTMLElement} root @param {() => void} onPress */
  constructor(root, onPress) {
    const part = (name) => /** @type {HTMLElement} */ (root.querySelector(name));
    this.#root = root;
    this.#balance = part('#balance');
    this.#address = part('#address');
    this.#button = part('button');
    this.#button.addEventListener('click', (event) => {
      // The second click of a double one would take back what the first one did.
      if (event.detail <= 1 && TAKES_CLICKS.has(root.dataset.state ?? '')) onPress();
    });
  }

  /** @param {Session} session */
  show({ state, account }) {
    if (this.#root.dataset.state !== state) {
      this.#root.dataset.state = state;
      this.#button.textContent = BUTTON[state];
      this.#button.hidden = BUTTON[state] === '';
      this.#button.setAttribute('aria-disabled', String(!TAKES_CLICKS.has(state)));
    }
    const cents = account?.balance ?? null;
    this.#balance.dataset.cents = cents === null ? '' : String(cents);
    const balance = cents === null ? '' : `Balance ${format.balance(cents)}`;
    if (this.#balance.textContent !== balance) this.#balance.textContent = balance;
    this.#address.textContent = account ? format.shortAddress(account.address) : '';
    this.#address.dataset.address = account?.address ?? '';
    this.#address.title = account ? `Your account: ${account.address}` : '';
  }
}
