"""Style sheet of the report: follows the reader's light or dark theme and the width of the screen."""

CSS = """
:root{color-scheme:light
 dark;--page:#f5f6f9;--card:#fff;--ink:#1d2331;--muted:#667086;--line:#dfe3ea;--fill:#eef1f5;
 --frozen:#8e63c7;--before:#d9822c;--after:#2a78d7;--random:#8d96a4;--oracle:#12a593;--same:#1a9f6d;--different:#dd4e4b}
@media
 (prefers-color-scheme:dark){:root{--page:#0f131a;--card:#171c25;--ink:#e7eaf0;--muted:#9aa4b5;--line:#2b3340;
--fill:#222935;--frozen:#b08be0;--before:#eb9a4b;--after:#5b9ff0;--random:#8d96a4;--oracle:#2cc2ae;--same:#2fb885;--different:#ef6a66}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,Roboto,sans-serif;
 -webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 14px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 4px} h3{font-size:.95rem;font-weight:600;margin:0}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px
 22px;margin-top:18px}
p{margin:0} figure{margin:0}
.note{color:var(--muted);font-size:.85rem;margin-bottom:14px;max-width:95ch;text-wrap:pretty}
.facts{display:flex;flex-wrap:wrap;gap:6px 26px;margin:0}
.facts dt{color:var(--muted);font-size:.75rem} .facts dd{margin:0;font-weight:550;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr));gap:12px;margin-bottom:18px}
.tile{background:var(--fill);border-radius:10px;padding:12px 14px;font-size:.8rem;color:var(--muted)}
.tile h3{color:var(--ink);overflow-wrap:anywhere} .tile
 .big{font-size:1.7rem;line-height:1.3;color:var(--after);font-weight:650}
.tile .big span{color:var(--muted);font-size:1rem;font-weight:450}
 .ends{display:flex;justify-content:space-between}
.way{display:block;position:relative;height:8px;border-radius:4px;background:var(--line);margin:5px 0}
.way i{position:absolute;inset:0 auto 0 0;border-radius:4px;background:var(--after)}
.way
 b{position:absolute;top:-3px;bottom:-3px;width:3px;margin-left:-1.5px;border-radius:2px;background:var(--before)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.88rem}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tbody tr:last-child>*{border-bottom:0} thead th{color:var(--muted);font-weight:500}
th:first-child{text-align:left;padding-left:0;font-weight:500} td.after{font-weight:650}
thead .share{text-align:left;padding-left:10px} td.random,td.oracle,small{color:var(--muted)}
 .share{width:24%;min-width:150px;padding-right:0}
.share>div{display:flex;align-items:center;gap:10px} .share .way{flex:1} .share span:last-child{width:3.2em}
.way.none{visibility:hidden}
.dot,.dash,.scale{display:inline-block;vertical-align:middle;margin:-2px 6px 0 0;background:var(--c)}
.dot{width:9px;height:9px;border-radius:50%} .dash{width:18px;height:3px;border-radius:2px}
.dash.random,.dash.oracle{border-radius:0;background:repeating-linear-gradient(90deg,var(--c) 0
 5px,transparent 5px 8px)}
.key{color:var(--muted);font-size:.85rem;margin-bottom:10px} .key .dot+.dot,.key
 i:not(:first-child){margin-left:14px}
.scale{width:110px;height:9px;border-radius:5px;margin:-2px 6px 0!important;
 background:linear-gradient(90deg in hsl longer hue,hsl(160 62% 45%),hsl(5 62% 45%));
 background:linear-gradient(90deg,hsl(160 62% 45%),hsl(121 62% 45%),hsl(82 62% 45%),hsl(44 62% 45%),hsl(5
 62% 45%))}
.query{display:grid;grid-template-columns:132px minmax(0,1fr);gap:20px;padding:16px 0;border-top:1px solid
 var(--line)}
.query img{display:block;width:100%;height:auto;aspect-ratio:1;object-fit:contain;background:var(--fill)}
.ask p{font-weight:600;font-size:.85rem;margin-bottom:4px} .ask img{border-radius:8px}
figcaption{font-size:.72rem;line-height:1.3;color:var(--muted);margin-top:4px;overflow-wrap:anywhere}
.row>p{font-size:.8rem;color:var(--muted);margin-bottom:4px;font-variant-numeric:tabular-nums}
.row+.row{margin-top:10px}
 .row>p::before{content:"";display:inline-block;width:9px;height:9px;border-radius:50%;
 background:var(--after);margin-right:6px} .row.before>p::before{background:var(--before)}
.hits{display:grid;grid-template-columns:repeat(8,minmax(0,1fr));gap:8px}
.hits img{border:3px solid var(--c);border-radius:7px} .hits
 b{color:var(--c);font-size:.78rem;margin-right:4px;font-variant-numeric:tabular-nums}
figcaption span{display:block} .hits span{font-size:.66rem} .hits
 b+span:not(:last-child){display:inline;font-size:.72rem;color:var(--ink)}
.row.before .hits{max-width:66%} .row.before .hits span{display:none} .row.before .hits img{border-width:2px}
.row.before figcaption{margin-top:1px} .row.before .hits b{font-size:.7rem;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:14px}
.charts.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr))}
.chart svg{display:block;width:100%;height:auto} .charts+h3{margin:18px 0 6px}
.charts+.key{margin-top:16px}
details+details{margin-top:10px} summary{cursor:pointer;font-weight:600}
 pre{overflow-x:auto;font-size:.8rem;line-height:1.45;margin:12px 0 0}
@media (max-width:640px){table{font-size:.74rem} th,td{padding:6px 4px} th:first-child{white-space:normal}
 thead .dot,td .way{display:none}
 .share,.share span:last-child{min-width:0;width:auto} thead
 .share{white-space:normal;text-align:right;padding-right:0} .share>div{display:block}
 main{padding:18px 10px 32px} section{padding:16px 14px} h1{font-size:1.4rem}
 .query{grid-template-columns:minmax(0,1fr);gap:10px} .ask{display:grid;grid-template-columns:96px
 1fr;gap:2px 12px;align-items:start}
 .ask img{grid-row:1/3} .ask p{order:0;align-self:end} .ask figcaption{margin:0} .ask img{order:-1}
 .hits{grid-template-columns:repeat(4,minmax(0,1fr))} .row.before
 .hits{max-width:none;grid-template-columns:repeat(8,minmax(0,1fr));gap:4px}
 .row.before .hits b{font-size:.56rem;margin:0}}
@media print{body{background:none} section{break-inside:auto;border:0;padding:0}
 .query,.chart{break-inside:avoid}}
"""
