# Scripts as plain CGI runs them, and as `scripts` does: each of cgi.txt is run
# by a process of its own, and ten times in one worker, and every reply must be
# the same to the byte; and it runs inside the worker unless the table says why
# it cannot.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/..";
use File::Temp ();
use Test::More;
use Serai::Driver;
use Serai::Plain;

my %library = (
    'lib.pl'      => '$lib_value = 7; sub from_lib { "lib" } 1;',
    'conf.pl'     => '{ a => 1 }',
    'keep.pl'     => 'my $kept = 0; sub kept { ++$kept } 1;',
    'end.pl'      => 'END { print "end" } 1;',
    'data.txt'    => "data\n",
    'lib/Mod.pm'  => 'package Mod; sub f { "mod" } 1',
    'lib/Bye.pm'  => 'package Bye; sub bye { exit } 1',
    'lib/Blame.pm' => 'package Blame; use Carp; sub it { croak "blamed" } 1',
);

# read_table gives the scripts of a file: [name, source, {what is said of it}].
sub read_table ($path) {
    open my $file, '<', $path or die "$path: $!";
    my (undef, @blocks) = split /^(?=== )/m, do { local $/; <$file> };
    my %taken;
    return map {
        my (%is, @env);
        s/\A== (.*)\n// or die;
        my $name = $1;
        while (s/\A: (\w+) ?(.*)\n//) { if ($1 eq 'env') { push @env, split /=/, $2, 2 } else { $is{$1} = $2 } }
        s/\bHEAD\b(?=[; ])/print "Content-Type: text\/plain\\n\\n"/g;
        $is{file} = $is{name} // $name =~ s/[^A-Za-z0-9-]+/_/gr . '.cgi';
        $is{file} =~ s/(?=\.cgi\z)/$taken{$is{file}}/e if $taken{ $is{file} }++;
        my %env = @env;
        if (defined $is{post}) {
            $is{post} =~ s/\\(?:x(..)|(.))/defined $1 ? chr hex $1 : { n => "\n", r => "\r", t => "\t" }->{$2} \/\/ $2/ge;
            %env = (REQUEST_METHOD => 'POST', CONTENT_LENGTH => length $is{post}, %env);
        }
        $env{REQUEST_METHOD} = $is{method} if $is{method};
        $env{CONTENT_TYPE} = $is{type} if $is{type};
        $is{env} = \%env;
        [$name, /\A#!/ ? $_ : "#!/usr/bin/perl\n$_", \%is];
    } @blocks;
}

my @table = read_table("$FindBin::Bin/cgi.txt");
my $home = File::Temp::tempdir(CLEANUP => 1);
my %files = map { ("cgi-bin/$_" => $library{$_}) } keys %library;
for (@table) {
    my ($name, $source, $is) = @$_;
    $files{"cgi-bin/$is->{file}"} = (exists $is->{plain} ? '' : 'x:') . $source;
}
my ($site, $worker);

sub start () {
    $site = Serai::Driver->new(home => $home, files => \%files, block => [script => "/cgi-bin\0cgi-bin", max => 1, idle => 60000, env => 'MODE=test']);
    is $site->word, 'ready', 'ready' or diag $site->log;
    $worker = $site->connection;
}
start();
my $data = "$home/site/cgi-bin/data";

sub emptied () {
    if (-d $data) { unlink glob "$data/*" } else { mkdir $data or die }
}

my $only = $ENV{CGI_ONLY};
for (@table) {
    my ($name, $source, $is) = @$_;
    next if defined $only && $name !~ $only;
    emptied();
    my $plain = Serai::Plain::run($home, $is->{file}, $is);
    my $want = Serai::Plain::shown($plain, $is);
    my $from = length $site->log;
    my ($log, @bad) = ('');
    for my $n (1 .. 10) {
        emptied();
        my $reply = $worker->request(PATH_INFO => "/cgi-bin/$is->{file}" . ($is->{path} // ''), %{ $is->{env} }, defined $is->{post} ? (BODY => $is->{post}) : ());
        my $got = Serai::Plain::shown($reply, $is);
        push @bad, "run $n: $got" if $got ne $want;
        last if @bad > 1 || !defined $reply->{status};
        next if !$reply->{leaves};
        push @bad, 'the worker leaves' if !exists $is->{leaves};
        $site->ended;
        $log .= substr $site->log, $from;
        $from = 0;
        start();
    }
    $log .= substr $site->log, $from;
    my @why = $log =~ /runs in a process of its own for each request: (.*)/g;
    push @bad, 'apart: ' . ($why[0] // 'not said') if defined $is->{apart} ? ($why[0] // '') !~ $is->{apart} : @why;
    push @bad, 'the reason is said more than once' if @why > 1;
    push @bad, "not in the log: $is->{log}" if defined $is->{log} && $log !~ /$is->{log}/m;
    ok !@bad, $name or diag join "\n", "plain: $want", $plain->{log} // '', map({ substr $_, 0, 600 } @bad), substr $log, 0, 2000;
    start() if @bad;
}
ok $site->log !~ /Serai\/\w+\.pm line/, 'no warning of our own' or diag join '', grep { /Serai\/\w+\.pm line/ } split /^/, $site->log;

$worker->quit;
is $site->ended, 0;
done_testing;
