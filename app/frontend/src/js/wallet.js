import { Problem } from './api.js';
import * as base58 from './base58.js';

/**
 * The practice wallet: an Ed25519 key pair that this browser makes and keeps. The private key can
 * be used here but read by nobody, this page included; clearing the site's data loses it.
 */

const DATABASE = 'tap-wallet';
const STORE = 'keys';
const NAME = 'practice';

const NEEDS_HTTPS =
  'Betting needs a wallet, which browsers make only over HTTPS: here you can only watch the prices.';
const NO_KEYS =
  'This browser cannot make the wallet that betting needs (Ed25519): you can only watch the prices.';
const NO_STORAGE =
  'This browser keeps nothing for this site (IndexedDB), so it cannot hold the wallet that betting '
  + 'needs: you can only watch the prices.';

export class Wallet {
  #privateKey;

  /** @param {CryptoKey} privateKey @param {string} address base58 of the public key */
  constructor(privateKey, address) {
    this.#privateKey = privateKey;
    this.address = address;
  }

  /** @param {Uint8Array<ArrayBuffer>} message @returns {Promise<string>} the signature in base58 */
  async sign(message) {
    return base58.encode(
      new Uint8Array(await crypto.subtle.sign('Ed25519', this.#privateKey, message)),
    );
  }
}

/**
 * This browser's wallet, made at the first visit. Throws a Problem when it cannot have one.
 * @returns {Promise<Wallet>}
 */
export async function openWallet() {
  if (!isSecureContext) throw new Problem('insecure_context', NEEDS_HTTPS);
  let fresh;
  try {
    fresh = await crypto.subtle.generateKey('Ed25519', false, ['sign', 'verify']);
  } catch {
    throw new Problem('no_ed25519', NO_KEYS);
  }
  try {
    const { privateKey, publicKey } = await keptOr(/** @type {CryptoKeyPair} */ (fresh));
    const raw = await crypto.subtle.exportKey('raw', publicKey);
    return new Wallet(privateKey, base58.encode(new Uint8Array(raw)));
  } catch {
    throw new Problem('no_storage', NO_STORAGE);
  }
}

/**
 * The pair that is kept, else `fresh`, which is then. One transaction looks and keeps, so that
 * two tabs never hold two accounts; it ends when the pair is on disk.
 * @param {CryptoKeyPair} fresh @returns {Promise<CryptoKeyPair>}
 */
function keptOr(fresh) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const database = opening.result;
      const keeping = database.transaction(STORE, 'readwrite', { durability: 'strict' });
      const store = keeping.objectStore(STORE);
      const found = store.get(NAME);
      found.onsuccess = () => {
        if (found.result === undefined) store.put(fresh, NAME);
      };
      keeping.oncomplete = () => {
        database.close();
        resolve(found.result ?? fresh);
      };
      keeping.onabort = () => {
        database.close();
        reject(keeping.error);
      };
    };
  });
}
