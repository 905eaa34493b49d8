# Scripts as plain CGI runs them, and as `scripts` does: each of cgi.txt is run
# by a process of its own, and ten times in one worker, and every reply must be
# the same to the byte; and it runs inside the worker unless the table says why
# it cannot.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/..";
use File::Temp ();
use POSIX ();
use Test::More;
use Serai::Driver;

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
my ($root, $data) = ("$home/site", "$home/site/cgi-bin/data");

# plain runs a script as a CGI server does (RFC 3875), and reads what it said.
sub plain ($file, $is) {
    my $path = $is->{path} // '';
    my %env = (
        PATH => '/usr/local/bin:/usr/bin:/bin', LANG => 'C.UTF-8', HOME => $home, USER => 'alice', LOGNAME => 'alice', MODE => 'test',
        REQUEST_METHOD => 'GET', SCRIPT_NAME => "/cgi-bin/$file", length $path ? (PATH_INFO => $path, PATH_TRANSLATED => "$root$path") : (),
        REQUEST_URI => "/cgi-bin/$file$path", QUERY_STRING => '', SERVER_NAME => 'shop.example.com', SERVER_PORT => 80, SERVER_PROTOCOL => 'HTTP/1.1',
        REMOTE_ADDR => '192.0.2.1', HTTP_HOST => 'shop.example.com', SERAI_REQUEST => 'r1', GATEWAY_INTERFACE => 'CGI/1.1', DOCUMENT_ROOT => $root,
        SCRIPT_FILENAME => "$root/cgi-bin/$file", SERVER_SOFTWARE => 'Serai', %{ $is->{env} },
    );
    open my $in, '+>', undef or die;
    syswrite $in, $is->{post} // '';
    sysseek $in, 0, 0;
    open my $out, '+>', undef or die;
    open my $log, '+>', undef or die;
    my @arguments = $env{QUERY_STRING} =~ /=/ || $env{REQUEST_METHOD} !~ /\A(?:GET|HEAD)\z/ ? () : map { s/%([0-9A-F]{2})/chr hex $1/ger } split /\+/, $env{QUERY_STRING};
    my $pid = fork // die;
    if (!$pid) {
        %ENV = %env;
        chdir "$root/cgi-bin";
        umask 022;
        POSIX::dup2(fileno $in, 0);
        POSIX::dup2(fileno $out, 1);
        POSIX::dup2(fileno $log, 2);
        my @command = -x $file ? "$root/cgi-bin/$file" : ($^X, $files{"cgi-bin/$file"} =~ /\A#!\S+ (-\S+)/ ? $1 : (), "$root/cgi-bin/$file");
        exec { $command[0] } @command, @arguments or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    my ($text, $said) = map { seek $_, 0, 0; local $/; scalar readline $_ } $out, $log;
    return { status => 500, log => $said } if exists $is->{500};
    $text =~ s/\A(.*?)\r?\n\r?\n//s or return { status => 500, body => '', log => "no head: $text\n$said" };
    my ($status, @headers);
    for (split /\r?\n(?![ \t])/, $1) {
        if (m{\AHTTP/\S+ (\d+)}) { $status = $1; next }
        s/\r?\n[ \t]+/ /g;
        my ($n, $v) = /\A([^:]+):\s*(.*?)\s*\z/ or die "no header: $_";
        if ($n eq 'Status') { ($status) = $v =~ /\A(\d+)/ } else { push @headers, $n, $v }
    }
    $status //= (grep { /\Alocation\z/i } @headers) ? 302 : 200;
    $text = '' if $env{REQUEST_METHOD} eq 'HEAD';
    return { status => $status, headers => \@headers, body => $text, log => $said };
}

# shown is a reply as a text that can be compared.
sub shown ($reply, $is) {
    return "no reply: " . ($reply->{abort} // '') if !defined $reply->{status};
    return "500\n" if exists $is->{500} && $reply->{status} == 500 && ($reply->{body} // '') =~ /\A(?:500 Internal Server Error\n|\z)/;
    my $body = $reply->{body} =~ s/; at .*//r;
    my @h = @{ $reply->{headers} };
    my $head = '';
    while (my ($n, $v) = splice @h, 0, 2) { $v =~ s/\w{3}, \d\d.\w{3}.\d{4} [\d:]+ GMT/DATE/; $head .= "$n: $v\n" }
    return "$reply->{status}\n$head\n$body";
}

sub emptied () {
    if (-d $data) { unlink glob "$data/*" } else { mkdir $data or die }
}

my $only = $ENV{CGI_ONLY};
for (@table) {
    my ($name, $source, $is) = @$_;
    next if defined $only && $name !~ $only;
    emptied();
    my $plain = plain($is->{file}, $is);
    my $want = shown($plain, $is);
    my $from = length $site->log;
    my @bad;
    for my $n (1 .. 10) {
        emptied();
        my $reply = $worker->request(PATH_INFO => "/cgi-bin/$is->{file}" . ($is->{path} // ''), %{ $is->{env} }, defined $is->{post} ? (BODY => $is->{post}) : ());
        my $got = shown($reply, $is);
        push @bad, "run $n: $got" if $got ne $want;
        last if @bad > 1 || !defined $reply->{status};
    }
    my $log = substr $site->log, $from;
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
