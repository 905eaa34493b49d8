# Directories of CGI scripts: which path is which script, what happens when files
# change, what runs apart. How a script runs is cgi.t's.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/..";
use Test::More;
use Serai::CGI;
use Serai::Driver;

my $P = "#!/usr/bin/perl\n";
my $T = 'print "Content-Type: text/plain\n\n";' . "\n";
my $page = qr/\A500 Internal Server Error\n/;

my %files = (
    'cgi-bin/hello.cgi' => "$P$T print qq(hello\\n);", 'cgi-bin/lib/Mod.pm' => 'package Mod; sub f { "mod" } 1',
    'cgi-bin/data.txt' => 'data', 'cgi-bin/.hidden.cgi' => "${P}1", 'cgi-bin/plain' => "$P$T print 'plain';",
    'cgi-bin/sub/deep.cgi' => "$P$T print \$ENV{SCRIPT_NAME};", 'other/x.cgi' => "$P$T print 'other';",
);
my $home = File::Temp::tempdir(CLEANUP => 1);
my $d = Serai::Driver->new(home => $home, files => \%files,
    block => [env => "GITWEB_CONFIG=$home/gitweb.conf", script => "/cgi-bin\0cgi-bin", script => "/cgi-bin/other/\0other", max => 1, idle => 60000, env => 'MODE=test']);
is $d->word, 'ready', 'ready' or diag $d->log;
my $c = $d->connection;

for (['/cgi-bin/none.cgi', 404], ['/cgi-bin/data.txt', 404], ['/cgi-bin/.hidden.cgi', 404], ['/cgi-bin/../other/x.cgi', 404], ['/cgi-bin/sub', 404], ['/cgi-bin', 404], ['/cgi-bin/', 404],
    ['/', 404], ['', 404], ['/cgi-binx/hello.cgi', 404], ["/cgi-bin/hello.cgi\0x", 404], ['/cgi-bin/lib/Mod.pm', 404],
    ['/cgi-bin/sub/deep.cgi', 200, '/cgi-bin/sub/deep.cgi'], ['/cgi-bin/sub/deep.cgi/more', 200, '/cgi-bin/sub/deep.cgi'], ['/cgi-bin/other/x.cgi', 200, 'other'],
    ['/cgi-bin/plain', 200, 'plain'], ['/cgi-bin//hello.cgi', 200, "hello\n"]) {
    my ($path, $status, $body) = @$_;
    my $r = $c->request(PATH_INFO => $path);
    ok $r->{status} == $status && (!defined $body || $r->{body} eq $body), "path $path" =~ s/\0/\\0/gr or diag explain $r;
}

subtest 'a changed script' => sub {
    $d->write('site/cgi-bin/hello.cgi', "$P$T print 'changed'; sub new_one { 1 }");
    is $c->request(PATH_INFO => '/cgi-bin/hello.cgi')->{body}, 'changed';
    $d->write('site/cgi-bin/hello.cgi', "${P}oops(");
    is $c->request(PATH_INFO => '/cgi-bin/hello.cgi')->{status}, 500;
    $d->write('site/cgi-bin/hello.cgi', "$P$T print 'mended';");
    is $c->request(PATH_INFO => '/cgi-bin/hello.cgi')->{body}, 'mended';
};

subtest 'a changed module' => sub {
    $d->write('site/cgi-bin/uses.cgi', "${P}use lib './lib'; use Mod qw(word); use Mod2; $T print word(), Mod::n(), Mod2::of(), \$Mod::left++ // 0;");
    my $mod = sub ($word) { $d->write('site/cgi-bin/lib/Mod.pm', "package Mod; use parent 'Exporter'; our \@EXPORT_OK = 'word'; my \$n = 0; sub n { ++\$n } sub word { '$word' } 1") };
    $mod->('old');
    $d->write('site/cgi-bin/lib/Mod2.pm', 'package Mod2; use Mod "word"; sub of { word() } 1');
    my $ask = sub { $c->request(PATH_INFO => '/cgi-bin/uses.cgi')->{body} };
    is $ask->(), 'old1old0', 'loaded';
    is $ask->(), 'old2old0', 'kept';
    $mod->('new');
    is $ask->(), 'new1new0', 'loaded anew, for who uses it too';
    $d->write('site/cgi-bin/lib/Mod.pm', 'package Mod; sub {');
    is $c->request(PATH_INFO => '/cgi-bin/uses.cgi')->{status}, 500, 'broken';
    like $d->log, qr{request r1: lib/Mod\.pm line 1: }, 'said where';
    $mod->('mended');
    is $ask->(), 'mended1mended0', 'mended';
    unlike $d->log, qr/redefined/;
};

subtest 'two modules of one name' => sub {
    $d->write("site/cgi-bin/$_/Conf.pm", "package Conf; sub name { '$_' } 1") for 'one', 'two';
    $d->write("site/cgi-bin/in_$_.cgi", "${P}use lib '$_'; use Conf; $T print Conf::name();") for 'one', 'two';
    for (1 .. 3) { is $c->request(PATH_INFO => "/cgi-bin/in_$_.cgi")->{body}, $_ for 'one', 'two' }
    is 0 + (() = $d->log =~ /in_two\.cgi runs in a process of its own for each request: its Conf is not the one that is loaded already$/mg), 1, 'the other one apart';
};

subtest 'compiled before anybody asks' => sub {
    my $d = Serai::Driver->new(block => [script => "/cgi-bin\0cgi-bin", max => 2, idle => 60000], files => {
        'cgi-bin/made.cgi' => "${P}use POSIX (); our \$by; BEGIN { \$by = POSIX::getpid() } $T print \$by == getppid() ? 'shared' : 'own';",
        'cgi-bin/slow.cgi' => "${P}BEGIN { select undef, undef, undef, 60 } $T",
        'cgi-bin/sub/zz.cgi' => "${P}oops(",
        'cgi-bin/apart.cgi' => "${P}fork; $T",
    });
    is $d->word, 'ready', 'ready, whatever the scripts are like';
    like $d->log_until(qr/zz\.cgi/), qr{^Serai: cgi-bin/slow\.cgi.*more than 3 seconds.*^Serai: cgi-bin/sub/zz\.cgi line 3: syntax error}ms, 'what does not compile is said';
    is $d->connection->request(PATH_INFO => '/cgi-bin/made.cgi')->{body}, 'shared', 'workers share what is compiled';
};

subtest 'a process for each request, asked for' => sub {
    for ([[persistent => 0], 'spec.perl.persistent is false'], [['per-request' => 'cgi-bin/n.cgi'], 'spec.perl.perRequest names it']) {
        my ($block, $why) = @$_;
        my $d = Serai::Driver->new(files => { 'cgi-bin/n.cgi' => "${P}package Other; $T print ++\$n;" },
            block => [script => "/cgi-bin\0cgi-bin", @$block, max => 1, idle => 60000]);
        is $d->word, 'ready';
        is $d->request(PATH_INFO => '/cgi-bin/n.cgi')->{body}, 1 for 1 .. 3;
        is 0 + (() = $d->log =~ /n\.cgi runs in a process of its own for each request: \Q$why\E$/mg), 1, "said once: $why";
    }
};

POSIX::mkfifo("$d->{home}/site/fifo", 0600);
for (['inside', ''], ['apart', "system 'true'; "]) {
    my ($way, $also) = @$_;
    subtest "a script sends while it prints, $way" => sub {
        $d->write('site/cgi-bin/slow.cgi', "$P\$| = 1;\n$T print 'one'; $also open my \$f, '<', '../fifo'; <\$f>; print 'two';");
        my $from = length $d->log;
        $c->start(PATH_INFO => '/cgi-bin/slow.cgi');
        my ($type) = $c->frame;
        is $type, 'h', 'the head';
        my $got = '';
        while ($got !~ /one/) { my (undef, $part) = $c->frame; $got .= $part }
        is $got, 'one', 'the first part, before the script goes on';
        open my $f, '>', "$d->{home}/site/fifo";
        close $f;
        is $c->reply->{body}, 'two', 'the rest';
        is 0 + (substr($d->log, $from) =~ /slow\.cgi runs in a process/), 0 + ($way eq 'apart'), 'where';
    };
}

subtest 'the client goes while a script prints' => sub {
    my $other = Serai::Driver->new(files => { 'cgi-bin/hello.cgi' => $files{'cgi-bin/hello.cgi'}, 'cgi-bin/endless.cgi' => "$P\$| = 1; $T print 'x' x 1000 while 1;",
        'cgi-bin/stubborn.cgi' => "$P\$| = 1; $T while (1) { eval { print 'x' x 1000 } }" },
        block => [script => "/cgi-bin\0cgi-bin", max => 1, idle => 60000]);
    is $other->word, 'ready';
    my $c = $other->connection;
    $c->start(PATH_INFO => '/cgi-bin/endless.cgi');
    $c->frame for 1 .. 3;
    $c->drop;
    is $other->connection->request(PATH_INFO => '/cgi-bin/hello.cgi')->{body}, "hello\n", 'it ends, and the worker goes on';
    $c = $other->connection;
    $c->start(PATH_INFO => '/cgi-bin/stubborn.cgi');
    $c->frame for 1 .. 3;
    $c->drop;
    is $other->ended, 0, 'one that catches that ends with the worker';
};

subtest 'a child that a script leaves behind does not hold the reply' => sub {
    $d->write('site/cgi-bin/left.cgi', "$P$T if (my \$p = fork) { print \$p; exit } close \$_ for *STDIN, *STDOUT, *STDERR; open my \$f, '<', '../fifo'; <\$f>;");
    like $c->request(PATH_INFO => '/cgi-bin/left.cgi')->{body}, qr/^\d+$/, 'the reply ends while the child waits';
    open my $f, '>', "$d->{home}/site/fifo";    # the child opens the other end, and ends
    close $f;
};

my $log = $d->log;
unlike $log, qr/Serai\/\w+\.pm line/, 'no warning of our own' or diag grep { /Serai\/\w+\.pm line/ } split /^/, $log;

# The head of a script's output, piece by piece.
for (["A: 1\n\nrest", [200, ['A', 1]], 'rest'], ["A: 1\r\n\r\nrest", [200, ['A', 1]], 'rest'], ["A: 1\n", undef], ['', undef], ["HTTP/1.1 299 X\nA: 1\n\n", [299, ['A', 1]], ''],
    ["Status: 500 x\nlocation: /\n\n", [500, ['location', '/']], ''], ["A:\n\n", [200, ['A', '']], ''], ["A : 1\n\n", [200, ['A', 1]], '']) {
    my ($text, $want, $rest) = @$_;
    my $got = Serai::CGI::head(\(my $copy = $text));
    is_deeply [$got, defined $want ? $copy : undef], [$want, $rest], "head of " . Serai::Reply::shown($text);
}

$c->quit;
is $d->ended, 0;
done_testing;
