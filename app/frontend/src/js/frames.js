/**
 * Calls `draw` once per frame while the page is visible, and not at all while it is not.
 * @param {(elapsed: number) => void} draw told the ms since the frame before
 */
export function everyFrame(draw) {
  let handle = 0;
  let previous = performance.now();
  const frame = (now) => {
    handle = requestAnimationFrame(frame);
    const elapsed = Math.min(now - previous, 250);
    previous = now;
    draw(elapsed);
  };
  const follow = () => {
    cancelAnimationFrame(handle);
    if (document.visibilityState === 'visible') handle = requestAnimationFrame(frame);
  };
  document.addEventListener('visibilitychange', follow);
  follow();
}
