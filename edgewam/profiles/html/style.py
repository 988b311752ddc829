"""The page's only style sheet: light and dark by the reader's setting, one column on a phone, numbers that line up."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626a73; --line: #dde1e6; --page: #fdfdfb; --card: #ffffff;
  --engine: #0a6c8f; --eager: #b7bec6; --floor: #d0812b; --second: #8452a8; --bad: #b3261e; --good: #2f7d4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa3ad; --line: #2d333b; --page: #14171b;
    --card: #1b1f24;
  --engine: #5dbfe0; --eager: #59626d; --floor: #e0a354; --second: #bf94de; --bad: #ff8f87; --good: #7fd0a0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
    font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 0 0 .3rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.4rem 0 .4rem; }
section { margin-top: 3rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
p { margin: .3rem 0 .9rem; }
.lead, .soft, figcaption, .none { color: var(--soft); }
.lead { max-width: 46rem; }
.absent { color: var(--bad); }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
    padding: .8rem 1rem; margin: .4rem 0; }
data, table, .tiles, .xaxis, .yaxis { font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.6rem 0 0; }
.tile, .step { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.55rem; font-weight: 650; line-height: 1.25; letter-spacing: -.01em; }
.tile span { color: var(--soft); font-size: .86rem; }
.road { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.3rem, 1fr)); gap: .8rem; padding: 0; margin: 0;
    list-style: none; counter-reset: step; }
.step h3 { margin: 0 0 .1rem; counter-increment: step; }
.step h3::before { content: counter(step) " "; color: var(--soft); font-weight: 400; }
.step dl { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .1rem .5rem; margin: .5rem 0 0; font-size: .82rem; }
.step dt { color: var(--soft); } .step dd { margin: 0; text-align: right; }
.step { padding: .75rem; min-width: 0; } .step code { white-space: nowrap; font-size: .92em; letter-spacing: -.02em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .6rem 0; }
th { font-weight: 600; color: var(--soft); font-size: .8rem; vertical-align: bottom; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); }
th.n, td.n { text-align: right; padding: .35rem 0 .35rem .6rem; white-space: nowrap; }
tr.total td { font-weight: 650; }
.pass { color: var(--good); font-weight: 600; } .fail { color: var(--bad); font-weight: 600; }
.rows { display: grid; grid-template-columns: 9.5rem 1fr 8.5rem; gap: .5rem .9rem; align-items: center; font-size: .9rem; }
.row { display: contents; }
.rows .name { overflow-wrap: anywhere; } .rows .what { text-align: right; white-space: nowrap; }
.rows.wide { grid-template-columns: 15rem 1fr 8.5rem; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .86rem; color: var(--soft); margin: .6rem 0; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem;
    vertical-align: -.08rem; }
.key i.wire { height: 0; border-top: 2px solid; vertical-align: .22rem; border-radius: 0; width: 1.2rem;
    background: none !important; }
svg { display: block; overflow: visible; }
rect.engine, .key i.engine { fill: var(--engine); background: var(--engine); border-color: var(--engine); }
rect.eager, .key i.eager { fill: var(--eager); background: var(--eager); border-color: var(--eager); }
rect.floor, .key i.floor { fill: var(--floor); background: var(--floor); border-color: var(--floor); }
.key i.second { border-color: var(--second); } .key i.dash { border-top-style: dashed !important;
    border-color: var(--soft) !important; }
line.grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
line.whisker { stroke: var(--engine); stroke-width: 2; } circle.point { fill: var(--engine); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
polyline.engine { stroke: var(--engine); } polyline.engine-tail { stroke: var(--engine); stroke-dasharray: 2 3; }
polyline.second { stroke: var(--second); } polyline.second-tail { stroke: var(--second); stroke-dasharray: 2 3; }
polyline.spread { stroke: var(--soft); stroke-dasharray: 7 5; stroke-width: 1.5; }
.plot { display: grid; grid-template-columns: 3.2rem 1fr; grid-template-rows: auto 15rem 1.4rem auto; margin: 1rem 0;
    font-size: .8rem; color: var(--soft); }
.plot .ylabel { grid-column: 1 / 3; padding-bottom: .5rem; } .plot svg { grid-column: 2; width: 100%; height: 100%; }
.plot .yaxis { position: relative; } .plot .yaxis span { position: absolute; right: .6rem; transform: translateY(-50%);
    white-space: nowrap; }
.plot .xaxis { position: relative; grid-column: 2; } .plot .xaxis span { position: absolute; top: .3rem;
    transform: translateX(-50%); }
.plot .xlabel { grid-column: 2; text-align: center; padding-top: .3rem; }
figure { margin: 1rem 0; } figcaption { font-size: .88rem; margin-top: .5rem; }
.film img { display: block; width: 100%; max-width: 45rem; height: auto; border-radius: 8px; border: 1px solid var(--line); }
footer { margin-top: 3rem; color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; } h1 { font-size: 1.4rem; } .tile b { font-size: 1.3rem; }
  .rows, .rows.wide { display: block; } .row svg { grid-column: 1 / 3; grid-row: 2; }
  .row { display: grid; grid-template-columns: 1fr auto; gap: .2rem .8rem; margin-bottom: .8rem; }
  td:first-child { min-width: 6.5rem; } .plot { grid-template-rows: auto 12rem 1.4rem auto; }
}
@media print { section { break-inside: avoid; } }
"""
