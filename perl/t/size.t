# workers.size: when a worker leaves, what the log says grew it, and that the
# kernel ends it before its loaded process.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Serai::Driver;

my $APP = <<'APP';
use constant MIB => 1 << 20;
my (@kept, $shared);
BEGIN { $shared = [map { "$_" x 10 } 1 .. 300_000] }    # some 30 MiB that workers share with their loaded process
sub {
    my $e = shift;
    my %do = (
        '/keep'   => sub { push @kept, 'x' x ($e->{QUERY_STRING} * MIB); 'kept' },
        '/little' => sub { push @kept, 'x' x 1000; 'kept' },
        '/drop'   => sub { length('x' x (40 * MIB)) },
        '/touch'  => sub { $_ .= '' for @$shared; my $n = 0; $n += $_ for @$shared; "touched" },
        '/pid'    => sub { $$ },
        '/score'  => sub { join ' ', map { open my $f, '<', "/proc/$_/oom_score_adj" or die; readline($f) + 0 } $$, getppid },
    );
    my $text = ($do{ $e->{PATH_INFO} } // sub { 'nothing' })->();
    return [200, [], [$text]] if ($e->{HTTP_STREAM} // '') ne 1;
    return sub { my $w = $_[0]->([200, []]); $w->write($text); $w->close };
};
APP

sub site ($app = $APP, %block) {
    my $d = Serai::Driver->new(files => { 'app.psgi' => $app }, block => [app => 'app.psgi', idle => 60000, %block]);
    is $d->word, 'ready', 'ready';
    return $d;
}

# ask asks until the worker leaves, at most n times; how often it took.
sub ask ($c, $n, @env) {
    for my $i (1 .. $n) {
        my $r = $c->request(@env);
        is $r->{status}, 200, "reply $i" if ($r->{status} // 0) != 200;
        return $i if $r->{leaves};
    }
    return 0;
}

for my $how ([whole => 0], [streamed => 1]) {
    subtest "a worker that keeps memory, its reply $how->[0]" => sub {
        for my $max (1, 4) {
            my $d = site($APP, max => $max, size => 100 << 20);
            my $c = $d->connection;
            my $n = ask($c, 100, PATH_INFO => '/keep', QUERY_STRING => 5, HTTP_STREAM => $how->[1]);
            ok $n >= 3 && $n <= 20, "leaves after $n requests (max $max)";
            ok $c->ended, 'and closes by itself';
            my $log = $d->log;
            like $log, qr/^Serai: worker [0-9]+ leaves after $n requests: 1[0-9][0-9]\.[0-9] MiB of private memory, workers\.size is 100\.0 MiB$/m, 'the log says so';
            like $log, qr/^ +[0-9]+\.[0-9] MiB in @{[$n - 1]} requests: GET \/keep$/m, 'and which request it was';
            is $d->connection->request(PATH_INFO => '/pid')->{status}, 200, 'another serves' if $max > 1;
        }
    };
}

subtest 'what stays' => sub {
    my $d = site($APP, max => 4, size => 64 << 20);
    my $c = $d->connection;
    is ask($c, 200, PATH_INFO => '/pid'), 0, 'a worker that does not grow';
    is ask($c, 200, PATH_INFO => '/little'), 0, 'one that grows a little';
    unlike $d->log, qr/Serai/, 'nothing in the log';
    my $off = site($APP, max => 4);
    is ask($off->connection, 40, PATH_INFO => '/keep', QUERY_STRING => 3), 0, 'no limit';
};

subtest 'pages shared with the loaded process do not count until they are touched' => sub {
    my $d = site($APP, max => 4, size => 24 << 20);
    my $c = $d->connection;
    my $pid = $c->request(PATH_INFO => '/pid')->{body};
    open my $statm, '<', "/proc/$pid/statm" or die;
    my (undef, $resident, $shared) = split / /, readline $statm;
    cmp_ok +($resident - $shared) * 4096, '>', 24 << 20, 'more than the limit in all';
    is ask($c, 100, PATH_INFO => '/pid'), 0, 'but not private';
    my $n = 0;
    my $until = time + $Serai::Driver::DEADLINE + 10;
    while (!$n && time < $until) { $n = ask($c, 1, PATH_INFO => '/touch'); select undef, undef, undef, 0.05 if !$n }
    ok $n, 'touched, it leaves';
};

subtest 'the report' => sub {
    my $d = site($APP, max => 1, size => 200 << 20);
    my $c = $d->connection;
    $c->request(PATH_INFO => "/junk$_", REQUEST_METHOD => 'POST') for 1 .. 300;
    $c->request(PATH_INFO => '/keep', QUERY_STRING => 2) for 1 .. 20;
    $c->request(PATH_INFO => "/\e[31m\nSerai: forged " . 'x' x 500) for 1 .. 3;
    ok ask($c, 200, PATH_INFO => '/keep', QUERY_STRING => 8), 'leaves';
    my ($report) = $d->log_until(qr/GET/) =~ /^(Serai: worker.*)/ms;
    my @lines = split /\n/, $report;
    cmp_ok @lines, '<=', 11, 'is short';
    like $lines[2], qr/MiB in [0-9]+ requests: GET \/keep$/, 'the largest first';
    unlike $report, qr/^Serai: forged/m, 'a path cannot forge a line';
    unlike $report, qr/[^ -~\n]/, 'nor speak to a terminal';
};

subtest 'whom the kernel ends where memory is short' => sub {
    my $d = site($APP, max => 4);
    is $d->connection->request(PATH_INFO => '/score')->{body}, '100 0', 'the worker before the loaded process';
    my $one = site($APP, max => 1);
    like $one->connection->request(PATH_INFO => '/score')->{body}, qr/^100 /, 'an only worker like other workers';
};

subtest 'scripts' => sub {
    my $d = Serai::Driver->new(files => { 'cgi-bin/leak.cgi' => 'x:' . <<'CGI' }, block => [script => "/cgi-bin\0cgi-bin", max => 1, size => 60 << 20]);
#!/usr/bin/perl
my $circle = ['x' x (4 << 20)]; push @$circle, $circle;
print "Content-Type: text/plain\n\nkept\n";
CGI
    is $d->word, 'ready', 'ready';
    ok ask($d->connection, 40, PATH_INFO => '/cgi-bin/leak.cgi'), 'leaves';
    like $d->log, qr/MiB in [0-9]+ requests: GET \/cgi-bin\/leak\.cgi$/m, 'the log names the script';
};

done_testing;
