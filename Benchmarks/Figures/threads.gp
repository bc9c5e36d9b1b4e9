# What threads get done together, each on its own pages. Columns: threads, PinKit in ns, plain C in ns; a block for each of `calls`, then
# for each of `faults`, two empty lines between them. `counts` are the numbers of threads, `most` is the largest.
set terminal svg size 1080,400 font "sans-serif,13" background "#ffffff"
load "style.gp"
set xlabel "threads"
set logscale x 2
set logscale y
set xrange [0.9:most*1.1]
# A tick for each number of threads that was measured.
set xtics ()
do for [i=1:words(counts)] { set xtics add (word(counts, i) word(counts, i)+0) }
color(i) = word("#2563eb #d97706 #059669 #7c3aed #dc2626", i)
rate(threads, ns) = threads*1000/ns
set key outside right center vertical Left reverse samplen 2
set multiplot layout 1,2 title "What threads get done together, each on its own pages" textcolor rgb "#1f2937"
set title "calls (dashed: if nothing were shared)"
set ylabel "millions a second, of all threads"
set yrange [*:*<1000000]
plot for [i=1:words(calls)] data index i-1 using 1:(rate($1, $2)) with linespoints linewidth 2 pointtype 7 pointsize 0.5 \
       linecolor rgb color(i) title word(calls, i), \
     for [i=1:words(calls)] one = NaN data index i-1 using 1:(one = ($0 == 0 ? $2 : one), rate($1, one)) \
       with lines linewidth 1.5 dashtype 2 linecolor rgb color(i) notitle
set title "first writes to pages (dashed: plain C)"
unset ylabel
plot for [i=1:words(faults)] data index words(calls)+i-1 using 1:(rate($1, $2)) \
       with linespoints linewidth 2 pointtype 7 pointsize 0.5 linecolor rgb color(i) title word(faults, i), \
     for [i=1:words(faults)] data index words(calls)+i-1 using 1:(rate($1, $3)) \
       with lines linewidth 1.5 dashtype 2 linecolor rgb color(i) notitle
unset multiplot
