# A PSGI application through the worker protocol: what it sees, what is made of
# what it returns, well-formed or not.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Serai::Driver;

my $APP = <<'APP';
use strict; use warnings;
my $T = ['Content-Type' => 'text/plain'];
my $n = 0;
package Lines { sub new { my $c = shift; bless [@_], $c } sub getline { shift @{$_[0]} } sub close { $main::closed++ } }
package Dying { sub new { bless {}, shift } sub getline { die "in the body\n" if $_[0]{n}++; "part" } sub close {} }
package main;
my %do = (
    '/hello' => sub { [200, $T, ["Hello\n"]] },
    '/parts' => sub { [200, $T, ['a', 'b', '', 'c']] },
    '/none' => sub { [200, $T, []] },
    '/undef-part' => sub { [200, $T, [undef]] },
    '/headers' => sub { [200, ['X-One' => '1', 'X-Two' => 2, 'X-One' => 'again', 'Set-Cookie' => 'a=b', 'Set-Cookie' => 'c=d', 'X-Empty' => ''], ['x']] },
    '/201' => sub { [201, [Location => '/new'], ['made']] },
    '/204' => sub { [204, [], ['not sent']] },
    '/304' => sub { [304, [ETag => '"x"'], ['not sent']] },
    '/latin1' => sub { my $s = "caf\xe9"; utf8::upgrade($s); [200, $T, [$s]] },
    '/latin1-header' => sub { my $s = "caf\xe9"; utf8::upgrade($s); [200, ['X-Name' => $s], ['x']] },
    '/long-header' => sub { [200, ['X-Long' => 'y' x 60000], ['x']] },
    '/big' => sub { [200, $T, ['z' x 3_000_000]] },
    '/mib' => sub { [200, $T, ['z' x (1 << 20)]] },
    '/env' => sub { my $e = shift; [200, $T, [join '', map { "$_=$e->{$_}\n" } grep { !ref $e->{$_} } sort keys %$e]] },
    '/psgi' => sub { my $e = shift; [200, $T, [join ',', @{$e->{'psgi.version'}}, map { $e->{"psgi.$_"} ? 1 : 0 } qw(multithread multiprocess run_once nonblocking streaming)]] },
    '/psgix' => sub { my $e = shift; [200, $T, [join ' ', map { "$_=$e->{$_}" } grep { /^psgix/ && !ref $e->{$_} } sort keys %$e]] },
    '/rewind' => sub { my $i = $_[0]{'psgi.input'}; read $i, my $a, 3; seek $i, -2, 1; read $i, my $b, 3; seek $i, 0, 2; my $n = tell $i; seek $i, 0, 0; read $i, my $c, 1; [200, $T, ["$a$b$c$n"]] },
    '/scheme' => sub { [200, $T, [$_[0]{'psgi.url_scheme'}]] },
    '/echo' => sub { my $i = $_[0]{'psgi.input'}; my $b = ''; 1 while $i->read($b, 8192, length $b); [200, $T, [$b]] },
    '/echo-twice' => sub { my $i = $_[0]{'psgi.input'}; local $/; my $a = <$i>; seek $i, 0, 0; my $b = <$i>; [200, $T, ["$a|$b"]] },
    '/echo-lines' => sub { my $i = $_[0]{'psgi.input'}; my @l = <$i>; [200, $T, [scalar @l]] },
    '/input-none' => sub { my $n = $_[0]{'psgi.input'}->read(my $b, 10); [200, $T, [$n]] },
    '/close-input' => sub { close $_[0]{'psgi.input'}; [200, $T, ['ok']] },
    '/layers' => sub { my $i = $_[0]{'psgi.input'}; my $n = () = PerlIO::get_layers($i); binmode $i, ':utf8'; bless $i, 'IO::Handle'; [200, $T, [$n]] },
    '/errors' => sub { $_[0]{'psgi.errors'}->print("to the log\n"); [200, $T, ['ok']] },
    '/print' => sub { local $| = 1; print "stray print\n"; [200, $T, ['ok']] },
    '/delayed' => sub { sub { $_[0]->([200, $T, ['later']]) } },
    '/stream' => sub { sub { my $w = $_[0]->([200, $T]); $w->write("a"); $w->write("b"); $w->write(''); $w->close } },
    '/stream-unclosed' => sub { sub { my $w = $_[0]->([200, $T]); $w->write("a") } },
    '/stream-big' => sub { sub { my $w = $_[0]->([200, $T]); $w->write('q' x 2_500_000) for 1, 2; $w->close } },
    '/chunked' => sub { [200, [@$T, 'Transfer-Encoding' => 'chunked'], ["4\r\nfour\r\n", "b;x=y\r\nten", " letters\r\n0\r\n\r\n"]] },
    '/chunked-stream' => sub { sub { my $w = $_[0]->([200, [@$T, 'transfer-encoding' => 'chunked']]); $w->write($_) for split //, "4\r\nfour\r\n2\r\n\r\n\r\n0\r\n\r\n"; $w->close } },
    '/chunked-not' => sub { [200, [@$T, 'Transfer-Encoding' => 'chunked'], ["plain text\n"]] },
    '/chunked-not-hex' => sub { [200, [@$T, 'Transfer-Encoding' => 'chunked'], ['abc']] },
    '/stream-dies' => sub { sub { my $w = $_[0]->([200, $T]); $w->write("a"); die "in the stream\n" } },
    '/stream-wide' => sub { sub { my $w = $_[0]->([200, $T]); $w->write("\x{263a}") } },
    '/write-after-close' => sub { sub { my $w = $_[0]->([200, $T]); $w->close; eval { $w->write('x') }; print STDERR "said: $@" } },
    '/never' => sub { sub { } },
    '/twice' => sub { sub { $_[0]->([200, $T, ['one']]); $_[0]->([200, $T, ['two']]) } },
    '/delayed-odd' => sub { sub { $_[0]->('x') } },
    '/delayed-four' => sub { sub { $_[0]->([200, $T, ['x'], 1]) } },
    '/memory-handle' => sub { my $s = "in memory\n" x 3; open my $f, '<', \$s; [200, $T, $f] },
    '/file' => sub { open my $f, '<', $ENV{HOME} . '/site/small.txt' or die; [200, $T, $f] },
    '/file-big' => sub { open my $f, '<', $ENV{HOME} . '/site/big.txt' or die; [200, $T, $f] },
    '/io-file' => sub { require IO::File; [200, $T, IO::File->new($ENV{HOME} . '/site/small.txt', 'r')] },
    '/pipe' => sub { open my $f, '-|', 'echo', 'piped' or die; [200, $T, $f] },
    '/getline' => sub { [200, $T, Lines->new("l1\n", "l2\n")] },
    '/closed' => sub { [200, $T, [$main::closed // 0]] },
    '/getline-dies' => sub { [200, $T, Dying->new] },
    '/die' => sub { inner() }, '/die-object' => sub { die { a => 1 } }, '/die-empty' => sub { die '' },
    '/eval' => sub { eval { die "caught\n" }; [200, $T, ["got $@"]] },
    '/exit-after' => sub { my $p = fork; if (!$p) { exit 3 } waitpid $p, 0; [200, $T, [$? >> 8]] },
    '/child-returns' => sub { my $p = fork; if (!$p) { return [200, $T, ['of the child']] } waitpid $p, 0; [200, $T, ['of the worker']] },
    '/string' => sub { 'not a reply' }, '/undef' => sub { undef }, '/hash' => sub { {} }, '/empty' => sub { () },
    '/two' => sub { [200, $T] }, '/four' => sub { [200, $T, ['x'], 1] },
    '/status-word' => sub { ['OK', $T, ['x']] }, '/status-100' => sub { [100, $T, ['x']] }, '/status-undef' => sub { [undef, $T, ['x']] }, '/status-1000' => sub { [1000, $T, ['x']] },
    '/odd' => sub { [200, ['X-A'], ['x']] }, '/header-hash' => sub { [200, { a => 1 }, ['x']] },
    '/header-undef' => sub { [200, ['X-A' => undef], ['x']] }, '/header-name-undef' => sub { [200, [undef, 'x'], ['x']] },
    '/header-newline' => sub { [200, ['X-A' => "a\r\nSet-Cookie: b"], ['x']] }, '/header-nul' => sub { [200, ['X-A' => "a\0b"], ['x']] },
    '/header-space' => sub { [200, ['X A' => 'x'], ['x']] }, '/header-empty' => sub { [200, ['' => 'x'], ['x']] },
    '/header-wide' => sub { [200, ['X-A' => "\x{263a}"], ['x']] }, '/header-huge' => sub { [200, ['X-A' => 'x' x 70000], ['x']] },
    '/head-huge' => sub { [200, [map { ("X-$_" => 'x' x 1000) } 1 .. 200], ['x']] },
    '/wide' => sub { [200, $T, ["\x{263a}"]] },
    '/body-string' => sub { [200, $T, 'x'] }, '/body-undef' => sub { [200, $T, undef] }, '/body-code' => sub { [200, $T, sub { 1 }] },
    '/cleanup' => sub { push @{ $_[0]{'psgix.cleanup.handlers'} }, sub { $main::cleaned = $_[0]{SERAI_REQUEST} }, sub { die "in cleanup\n" }; [200, $T, ['ok']] },
    '/cleaned' => sub { [200, $T, [$main::cleaned // 'no']] },
    '/buffered' => sub { open our $keep, '>', $ENV{HOME} . '/buffered'; print $keep 'kept'; [200, $T, ['ok']] },
    '/count' => sub { [200, $T, [++$n]] },
    '/rand' => sub { [200, $T, [rand]] },
    '/where' => sub { require Cwd; [200, $T, [Cwd::getcwd()]] },
    '/var' => sub { [200, $T, [join ',', map { $ENV{$_} // '-' } qw(MODE USER HOME LANG PLACK_ENV PERL5LIB)]] },
);
sub inner { die "the till is empty" }
sub { my $e = shift; my $f = $do{ $e->{PATH_INFO} } or return [404, $T, ['?']]; $f->($e) };
APP

my $d = Serai::Driver->new(
    files => { 'app.psgi' => $APP, 'small.txt' => "small\n" x 10, 'big.txt' => 'B' x 700_000 },
    block => [app => 'app.psgi', max => 1, idle => 60000, env => 'MODE=production', env => 'EQ=a=b'],
);
is $d->word, 'ready', 'ready';
my $c = $d->connection;
is_deeply [@$c{qw(first version site launch)}], ['H', 1, 7, 3], 'hello: version, site, launch';

# path, expected status, body (string, regex or code), and more: env, frames, log, header
my $page = qr/\A500 Internal Server Error\n.*\nRequest: r1\n\z/s;
my @table = (
    ['/hello', 200, "Hello\n", frames => 'W'],
    ['/parts', 200, 'abc'], ['/none', 200, ''], ['/undef-part', 200, ''],
    ['/headers', 200, 'x', headers => ['X-One', 1, 'X-Two', 2, 'X-One', 'again', 'Set-Cookie', 'a=b', 'Set-Cookie', 'c=d', 'X-Empty', '']],
    ['/201', 201, 'made', headers => [Location => '/new']],
    ['/204', 204, '', frames => 'W'], ['/304', 304, '', frames => 'W'],
    ['/hello', 200, '', env => { REQUEST_METHOD => 'HEAD' }, frames => 'W'],
    ['/file-big', 200, '', env => { REQUEST_METHOD => 'HEAD' }],
    ['/stream', 200, '', env => { REQUEST_METHOD => 'HEAD' }, frames => 'hl'],
    ['/latin1', 200, "caf\xe9"], ['/latin1-header', 200, 'x', headers => ['X-Name', "caf\xe9"]],
    ['/long-header', 200, 'x', headers => ['X-Long', 'y' x 60000]],
    ['/big', 200, 'z' x 3_000_000, frames => 'hdddl'], ['/mib', 200, 'z' x (1 << 20), frames => 'W'],
    ['/env', 200, qr/^HTTP_HOST=shop\.example\.com\nPATH_INFO=\/env\n.*^QUERY_STRING=a%20b\n/ms, env => { QUERY_STRING => 'a%20b' }],
    ['/psgi', 200, '1,1,0,0,0,0,1'],
    ['/psgix', 200, 'psgix.cleanup=1 psgix.harakiri=1 psgix.input.buffered=1'],    # no psgix.io, logger, session: there is none
    ['/rewind', 200, 'abcbcda5', env => { REQUEST_METHOD => 'POST', BODY => 'abcde' }],
    ['/rewind', 200, 'kkkkkkk1500000', env => { REQUEST_METHOD => 'POST', BODY => 'k' x 1_500_000 }],
    ['/scheme', 200, 'http'], ['/scheme', 200, 'https', env => { HTTPS => 'on' }],
    ['/echo', 200, 'x=1&y=2', env => { REQUEST_METHOD => 'POST', BODY => 'x=1&y=2' }],
    ['/echo', 200, '', env => { REQUEST_METHOD => 'POST', BODY => '' }],
    ['/echo', 200, join('', 0 .. 400_000), env => { REQUEST_METHOD => 'PUT', BODY => join('', 0 .. 400_000) }],
    ['/echo-twice', 200, 'ab|ab', env => { REQUEST_METHOD => 'POST', BODY => 'ab' }],
    ['/echo-twice', 200, ('k' x 2_000_000) . '|' . ('k' x 2_000_000), env => { REQUEST_METHOD => 'POST', BODY => 'k' x 2_000_000 }],
    ['/echo-lines', 200, '3', env => { REQUEST_METHOD => 'POST', BODY => "1\n2\n3" }],
    ['/hello', 200, "Hello\n", env => { REQUEST_METHOD => 'POST', BODY => 'unread' x 30000 }],
    ['/input-none', 200, '0'], ['/close-input', 200, 'ok'], ['/input-none', 200, '0'],
    ['/layers', 200, '1'], ['/layers', 200, '1'], ['/input-none', 200, '0'],
    ['/errors', 200, 'ok', log => qr/^to the log$/m], ['/print', 200, 'ok', log => qr/^stray print$/m],
    ['/delayed', 200, 'later', frames => 'W'], ['/stream', 200, 'ab', frames => 'hddl'], ['/stream-unclosed', 200, 'a', frames => 'hdl'],
    ['/stream-big', 200, 'q' x 5_000_000],
    ['/chunked', 200, 'fourten letters'], ['/chunked-stream', 200, "four\r\n"], ['/chunked', 200, '', env => { REQUEST_METHOD => 'HEAD' }],
    ['/chunked-not', 200, "plain text\n"], ['/chunked-not-hex', 200, 'abc'], ['/parts', 200, 'abc', frames => 'W'],
    ['/stream-dies', 200, 'a', abort => qr/failed in app\.psgi/, log => qr/request r1 failed in app\.psgi: in the stream/],
    ['/stream-wide', 200, '', abort => qr/failed/, log => qr/a character above 255/],
    ['/write-after-close', 200, '', log => qr/said: write after close/],
    ['/never', 500, $page, log => qr/the delayed reply never came/],
    ['/twice', 200, 'one', log => qr/given twice/],
    ['/delayed-odd', 500, $page, log => qr/the delayed reply is no array: "x"/], ['/delayed-four', 500, $page, log => qr/4 elements/],
    ['/memory-handle', 200, "in memory\n" x 3], ['/file', 200, "small\n" x 10, frames => 'W'], ['/file-big', 200, 'B' x 700_000, frames => qr/^hd+l$/],
    ['/io-file', 200, "small\n" x 10], ['/pipe', 200, "piped\n"],
    ['/getline', 200, "l1\nl2\n", frames => 'hddl'], ['/closed', 200, '1'],
    ['/getline-dies', 200, 'part', abort => qr/./, log => qr/in the body/],
    ['/die', 500, $page, log => qr/request r1 failed in app\.psgi: the till is empty at \S+app\.psgi line \d+\.\n    main::inner at \S+app\.psgi line \d+/],
    ['/die-object', 500, $page, log => qr/failed in app\.psgi: HASH/], ['/die-empty', 500, $page, log => qr/Died at/],
    ['/eval', 200, "got caught\n"],
    ['/exit-after', 200, '3'], ['/child-returns', 200, 'of the worker'],
    ['/string', 500, $page, log => qr/returned no reply: "not a reply"/], ['/undef', 500, $page, log => qr/no reply: undef/],
    ['/hash', 500, $page], ['/empty', 500, $page], ['/two', 500, $page, log => qr/2 elements, not 3/], ['/four', 500, $page],
    ['/status-word', 500, $page, log => qr/a status that is no number from 200 to 999: "OK"/],
    ['/status-100', 500, $page], ['/status-undef', 500, $page], ['/status-1000', 500, $page],
    ['/odd', 500, $page, log => qr/odd number/], ['/header-hash', 500, $page, log => qr/the headers are no array/],
    ['/header-undef', 500, $page, log => qr/the header X-A without a value/], ['/header-name-undef', 500, $page],
    ['/header-newline', 500, $page, log => qr/a line break or NUL in the header X-A/], ['/header-nul', 500, $page],
    ['/header-space', 500, $page, log => qr/a header name that is none: "X A"/], ['/header-empty', 500, $page],
    ['/header-wide', 500, $page, log => qr/a character above 255/], ['/header-huge', 500, $page, log => qr/a header of more than 65535/],
    ['/head-huge', 500, $page, log => qr/a head of more than/],
    ['/wide', 500, $page, log => qr/encode it to bytes/],
    ['/body-string', 500, $page, log => qr/neither array nor handle: "x"/], ['/body-undef', 500, $page], ['/body-code', 500, $page],
    ['/cleanup', 200, 'ok'], ['/cleaned', 200, 'r1'],
    ['/buffered', 200, 'ok'],
    ['/count', 200, '1'], ['/count', 200, '2'],
    ['/where', 200, "$d->{home}/site"],
    ['/var', 200, "production,alice,$d->{home},C.UTF-8,deployment,-"],
);
my $seen = 0;
for my $case (@table) {
    my ($path, $status, $body, %o) = @$case;
    my $before = length $d->log;
    my $r = $c->request(PATH_INFO => $path, %{ $o{env} // {} });
    my $ok = ($r->{status} // '') eq $status && (ref $body ? $r->{body} =~ $body : $r->{body} eq $body) && !$r->{leaves};
    $ok &&= ref $o{frames} ? $r->{frames} =~ $o{frames} : $r->{frames} eq $o{frames} if $o{frames};
    $ok &&= ($r->{abort} // '') =~ $o{abort} if $o{abort};
    $ok &&= !defined $r->{abort} if !$o{abort};
    $ok &&= "@{$r->{headers}}" eq "@{$o{headers}}" if $o{headers};
    my $log = $o{log} ? $d->log_until($o{log}, $before) : '';
    $ok &&= $log =~ $o{log} if $o{log};
    ok $ok, $path or diag explain { %$r, body => substr($r->{body} // '', 0, 300), log => $log };
}
like $d->log_until(qr/a cleanup/), qr/a cleanup handler of request r1 died: in cleanup/, 'a cleanup handler that dies';
unlike $d->log, qr/Use of|uninitialized|redefined/, 'no warning of our own';

subtest 'many requests in one write' => sub {
    my $list = pack '(n/a*)*', REQUEST_METHOD => 'GET', PATH_INFO => '/hello';
    $c->raw(pack('Naa*', length $list, 'R', $list) x 3);
    is $c->reply->{body}, "Hello\n" for 1 .. 3;
};

subtest 'a request in single bytes' => sub {
    my $list = pack '(n/a*)*', REQUEST_METHOD => 'POST', PATH_INFO => '/echo';
    $c->raw($_) for split //, pack('Naa*', length $list, 'P', $list) . pack('Naa*', 3, 'B', 'abc') . pack('Na', 0, 'E');
    is $c->reply->{body}, 'abc';
};

subtest 'the proxy dies: the same process serves the next' => sub {
    $c->drop;
    $c = $d->connection;
    is $c->request(PATH_INFO => '/count')->{body}, 3;
};

subtest 'the proxy dies within a request' => sub {
    $c->start(PATH_INFO => '/count');
    $c->drop;
    $c = $d->connection;
    like $c->request(PATH_INFO => '/count')->{body}, qr/\A[45]\z/;
    $c->raw(pack('Na', 500, 'P') . 'part');
    $c->drop;
    $c = $d->connection;
    like $c->request(PATH_INFO => '/count')->{body}, qr/\A[56]\z/;
};

subtest 'quit' => sub {
    $c->quit;
    ok $c->ended, 'end of file';
    is $d->ended, 0, 'the process left';
    is -s "$d->{home}/buffered", 4, 'what it had printed to a file was written';
};

done_testing;
