# What a site's own process says while it runs: its code is to be loaded anew;
# and what it is told: to stay awake.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use File::Path qw(make_path);
use Serai::Driver;

my $APP = 'use lib "./lib"; use Part; sub { [200, [], [Part::word()]] }';
my %FILES = ('app.psgi' => $APP, 'startup.pl' => '1;', 'lib/Part.pm' => 'package Part; sub word { "one" } 1;', 'data.txt' => 'x');
my %KIND = ('a loaded process' => [max => 4, startup => 'startup.pl'], 'the only worker' => [max => 1]);

sub site ($kind, @block) {
    my $d = Serai::Driver->new(files => \%FILES, block => [app => 'app.psgi', @{ $KIND{$kind} }, idle => 60000, @block]);
    is $d->word, 'ready', 'ready';
    return $d;
}
# touch is what touch(1) does; a file's time is never the same twice.
sub touch ($d, $name = 'tmp/restart.txt') {
    make_path("$d->{home}/site/tmp");
    system 'touch', "$d->{home}/site/$name";
}
# quiet says that nothing was said up to a word that we bring about.
sub quiet ($d, $what) {
    select undef, undef, undef, 1.2;    # it has looked
    ok !Serai::Driver::readable($d->{status}, 0), $what;
}

for my $kind (sort keys %KIND) {
    subtest "restart.txt, $kind" => sub {
        my $d = site($kind);
        touch($d);
        is $d->word, 'reload', 'made, with its directory';
        my $c = $d->connection;
        is $c->request->{body}, 'one', 'it serves on';
        touch($d);
        is $d->word, 'reload', 'touched while a connection waits for requests';
        unlink "$d->{home}/site/tmp/restart.txt";
        quiet($d, 'taken away is not touched');
        my $until = time + 3;
        touch($d);
        $c->request while time < $until && !Serai::Driver::readable($d->{status}, 0);
        is $d->word, 'reload', 'touched under load';

        return if $kind =~ /only/;    # the rest is the same
        # What is no file is looked at, and not waited for.
        unlink "$d->{home}/site/tmp/restart.txt";
        symlink 'nowhere', "$d->{home}/site/tmp/restart.txt";
        quiet($d, 'a link to nowhere');
        unlink "$d->{home}/site/tmp/restart.txt";
        POSIX::mkfifo("$d->{home}/site/tmp/restart.txt", 0600);
        is $d->word, 'reload', 'a FIFO';
        unlink "$d->{home}/site/tmp/restart.txt";
        mkdir "$d->{home}/site/tmp/restart.txt";
        is $d->word, 'reload', 'a directory';
        $d->write('site/lib/Part.pm', 'package Part; sub word { "two" } 1;');
        quiet($d, 'changed code alone is no reason');
        is $c->request->{body}, 'one', 'it serves on';
    };

    subtest "change, $kind" => sub {
        my $d = site($kind, reload => 'change', inc => 'lib');
        my $c = $d->connection;
        is $c->request->{body}, 'one', 'it serves';
        for my $name ($kind =~ /only/ ? 'lib/Part.pm' : qw(lib/Part.pm app.psgi lib/New.pm)) {
            $d->write("site/$name", ($FILES{$name} // '1;') . "\n");
            is $d->word, 'reload', $name;
        }
        $d->write('site/data.txt', 'y');
        quiet($d, 'data is not code');
        touch($d);
        is $d->word, 'reload', 'restart.txt too';
        quiet($d, 'one word for one change');
    };

    subtest "awake, $kind" => sub {
        my $d = site($kind, idle => 300);
        send $d->{status}, 'awake', 0;
        my $c = $d->connection;
        is $c->request->{body}, 'one', 'it serves';
        $c->quit;
        select undef, undef, undef, 1.5;    # much longer than idle
        is waitpid($d->{pid}, POSIX::WNOHANG()), 0, 'it stays';
        $c = $d->connection;
        is $c->request->{body}, 'one', 'and serves again';
        send $d->{status}, 'rest', 0;
        $c->quit;
        is $d->ended, 0, 'it leaves when nothing keeps it';
    };
}

subtest 'a root through a link' => sub {
    my $d = Serai::Driver->new(files => \%FILES, block => [app => 'app.psgi', max => 1, idle => 60000], root => 'current',
        home => do { my $h = File::Temp::tempdir(CLEANUP => 1); symlink 'site', "$h/current"; $h });
    is $d->word, 'ready', 'ready';
    make_path("$d->{home}/next/tmp");
    unlink "$d->{home}/current";
    symlink 'next', "$d->{home}/current";
    system 'touch', "$d->{home}/next/tmp/restart.txt";
    is $d->word, 'reload', 'touched where the link leads now';
};

done_testing;
