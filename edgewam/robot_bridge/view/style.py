"""The style of the live page: light and dark by the reader's setting, one column and a wide STOP button on a phone."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2025; --soft: #59616a; --edge: #d9dde2; --ground: #f6f7f5; --panel: #fff;
  --command: #0a6c8f; --state: #b4540a; --warn: #a32018; }
@media (prefers-color-scheme: dark) { :root { --text: #e7eaee; --soft: #a2abb5; --edge: #333a42; --ground: #121519;
  --panel: #1b1f24; --command: #5dbfe0; --state: #eda25a; --warn: #ff9a92; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif; }
header { position: sticky; top: 0; z-index: 2; display: flex; gap: 1rem; align-items: center; justify-content: space-between;
  padding: .7rem 1.2rem; color: #fff; background: #4a5159; }
header h1 { font-size: .95rem; font-weight: 500; margin: 0; overflow-wrap: anywhere; }
header p { margin: 0; } #state b { font-size: 1.7rem; line-height: 1.2; letter-spacing: .01em; } #cause { font-size: 1.05rem; }
#clock { font-variant-numeric: tabular-nums; font-size: .9rem; }
header[data-mode=RUN] { background: #1d6b3b; } header[data-mode=READY] { background: #0d5a78; }
header[data-mode=HOLD] { background: #8a4b00; } header[data-mode=STOP], header[data-mode=ESTOP] { background: #8f1610; }
header.stale { background: #4a5159; }
#stop { flex: none; min-width: 9rem; min-height: 4rem; padding: .5rem 1.5rem; font: 700 1.6rem/1 system-ui, sans-serif;
  color: #fff; background: #c4221a; border: 3px solid #fff; border-radius: 10px; cursor: pointer; letter-spacing: .05em; }
#stop:hover { background: #a5160f; } #stop:active { transform: translateY(1px); }
#stop:focus-visible { outline: 4px solid #ffd54a; outline-offset: 2px; }
#stop-note { margin: 0 auto; max-width: 76rem; padding: 0 1.2rem; font-weight: 600; color: var(--warn); }
#stop-note:not(:empty) { padding-top: .8rem; }
main { max-width: 76rem; margin: 0 auto; padding: .4rem 1.2rem 3rem; }
section { margin-top: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
.soft, #details, .key { color: var(--soft); font-size: .86rem; margin: .4rem 0; }
#cameras { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
figure { margin: 0; flex: 1 1 14rem; max-width: 24rem; } figure img { display: block; width: 100%; image-rendering: auto;
  border-radius: 6px; background: #222; min-height: 5rem; }
figcaption { font-size: .84rem; color: var(--soft); margin-top: .25rem; }
figcaption.lost { color: var(--warn); font-weight: 600; }
#tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: .6rem; }
.tile { background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; padding: .5rem .8rem; }
.tile b { display: block; font-size: 1.3rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .82rem; } .tile.bad { border-color: var(--warn); } .tile.bad b { color: var(--warn); }
#joints { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem; }
.joint { background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; padding: .4rem .6rem; min-width: 0; }
.joint div { display: flex; justify-content: space-between; gap: .5rem; font-size: .82rem; color: var(--soft); }
.joint output { font-variant-numeric: tabular-nums; color: var(--text); } canvas { display: block; width: 100%; }
.joint canvas { height: 4.2rem; } #lateness { height: 9rem; background: var(--panel); border: 1px solid var(--edge);
  border-radius: 8px; }
.key i { display: inline-block; width: 1.2rem; border-top: 3px solid; vertical-align: .22rem; margin: 0 .3rem 0 .8rem; }
.key i:first-child { margin-left: 0; } .key i.command { border-color: var(--command); }
.key i.state { border-color: var(--state); }
#roles { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 0; padding: 0; font-size: .88rem; }
#roles li { background: var(--panel); border: 1px solid var(--edge); border-radius: 999px; padding: .2rem .8rem;
  font-variant-numeric: tabular-nums; }
#roles li.bad { border-color: var(--warn); color: var(--warn); font-weight: 600; }
@media (max-width: 40rem) {
  header { flex-direction: column; align-items: stretch; gap: .5rem; padding: .6rem .8rem; } #stop { width: 100%; }
  main { padding: .2rem .8rem 2rem; } #joints { grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
  figure { flex: 1 1 9rem; max-width: calc(50% - .4rem); }
}
"""
