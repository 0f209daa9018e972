// A picture that is shown is not in the page twice: the link to it gets its address.
for (const picture of document.querySelectorAll(".paper img")) {
  picture.closest("figure").querySelector('a[download$=".svg"]').href = picture.src;
}
// What scrolls in its own box is reached by keyboard.
const boxes = new ResizeObserver((entries) => {
  for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
});
for (const paper of document.querySelectorAll(".paper")) boxes.observe(paper);
startRuns();
startCurves();
startAttention();
