# What the first write to a protected page costs. Columns: mechanism, PinKit in ns, plain C in ns.
set terminal svg size 720,400 font "sans-serif,13" background "#ffffff"
load "style.gp"
set title "The first write to a page after a collection, by mechanism"
set ylabel "µs"
set style data histograms
set style histogram clustered gap 1
set style fill solid noborder
set boxwidth 0.9
set yrange [0:*]
set offsets 0, 0, graph 0.08, 0
set key outside below center horizontal Left reverse samplen 2
set grid noxtics ytics
plot data using ($2/1000):xtic(1) linecolor rgb ours title "PinKit", \
     data using ($3/1000) linecolor rgb raw title "plain C on the same mechanism", \
     data using ($0-0.17):($2/1000):(sprintf("%.1f", $2/1000)) with labels offset 0,0.6 font ",11" textcolor rgb "#374151" notitle, \
     data using ($0+0.17):($3/1000):(sprintf("%.1f", $3/1000)) with labels offset 0,0.6 font ",11" textcolor rgb "#374151" notitle
