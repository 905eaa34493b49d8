# CGI programs that Debian ships, as they are: ten times in one worker they say
# what they say under plain CGI.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/..";
use File::Path qw(make_path);
use File::Temp ();
use Test::More;
use Serai::Driver;
use Serai::Plain;

my $home = File::Temp::tempdir(CLEANUP => 1);
my $cgi = "$home/site/cgi-bin";
make_path($cgi, "$home/repos", "$home/blog", "$home/stats");
local @ENV{qw(GIT_AUTHOR_DATE GIT_COMMITTER_DATE)} = ("2020-01-01T00:00:00Z") x 2;    # ages that stay
my $git = "git -c user.name=A -c user.email=a\@example.com";
system "cd $home/repos && git init -q --bare p.git && cd p.git && t=\$(git hash-object -w -t tree /dev/null)"
    . " && c=\$(echo first | $git commit-tree \$t) && git update-ref HEAD \$c" and die 'git';
my %files = (
    'gitweb.conf'              => "our \$projectroot = '$home/repos'; our \$site_name = 'Test';",
    'blosxom.conf'             => "\$datadir = '$home/blog'; \$blog_title = 'Test'; \$plugin_dir = ''; \$plugin_state_dir = '$home/blog'; \$url = ''; 1;",
    'blog/hello.txt'           => "Hello\n<p>A first entry.</p>\n",
    'site/cgi-bin/awstats.shop.conf' => join("\n", "LogFile=$home/access.log", 'SiteDomain=shop.example.com', 'HostAliases=localhost', "DirData=$home/stats",
        'LogFormat=1', 'DNSLookup=0', 'AllowToUpdateStatsFromBrowser=0', ''),
    'access.log' => join('', map { qq(192.0.2.$_ - - [0$_/Mar/2024:10:00:00 +0000] "GET /page$_ HTTP/1.1" 200 100 "-" "Mozilla/5.0"\n) } 1 .. 9),
);
my %program = (
    'gitweb.cgi'       => ['/usr/share/gitweb/gitweb.cgi', qr/it sets \$\|/, '', 'p=p.git;a=log', 'p=p.git;a=summary', 'p=nope.git', 'a=opml'],
    'awstats.pl'       => ['/usr/lib/cgi-bin/awstats.pl', undef, 'config=shop&year=2024&month=03', 'config=shop&year=2024&month=03&output=urldetail', 'config=none'],
    'blosxom.cgi'      => ['/usr/lib/cgi-bin/blosxom', undef, '', '/hello.html', '/index.rss', '/nothing.html'],
    'mailgraph.cgi'    => ['/usr/share/mailgraph/mailgraph.cgi', undef, ''],
    'couriergraph.cgi' => ['/usr/lib/cgi-bin/couriergraph.cgi', undef, ''],
);
my @env = ("GITWEB_CONFIG=$home/gitweb.conf", "BLOSXOM_CONFIG_FILE=$home/blosxom.conf");
for my $file (keys %files) { open my $f, '>', "$home/$file" or die; print {$f} $files{$file} }
utime 1.7e9, 1.7e9, "$home/blog/hello.txt";
for my $name (keys %program) {
    ok -r $program{$name}[0], "$program{$name}[0] is installed (packaging/install test)" or next;
    symlink $program{$name}[0], "$cgi/$name";
}
system "perl $cgi/awstats.pl -config=shop -configdir=$cgi -update >/dev/null" and die 'awstats';

my $site = Serai::Driver->new(home => $home, block => [script => "/cgi-bin\0cgi-bin", max => 1, idle => 60000, map { (env => $_) } @env]);
is $site->word, 'ready', 'ready' or diag $site->log;
my $worker = $site->connection;
for my $name (sort keys %program) {
    my (undef, $apart, @asked) = @{ $program{$name} };
    my $from = length $site->log;
    my %want;
    for my $asked (@asked) {
        my ($path, $query) = $asked =~ m{\A/} ? ($asked, '') : ('', $asked);
        $want{$asked} = { path => $path, env => { QUERY_STRING => $query } };
        my $plain = Serai::Plain::run($home, $name, { %{ $want{$asked} }, env => { map({ split /=/, $_, 2 } @env), QUERY_STRING => $query } });
        $want{$asked}{text} = Serai::Plain::shown($plain, {});
        ok length $plain->{body} > 100 || $plain->{status} != 200, "$name?$asked under plain CGI" or diag explain $plain;
    }
    my @bad;
    for my $n (1 .. 10) {
        for my $asked (@asked) {
            my $reply = $worker->request(PATH_INFO => "/cgi-bin/$name$want{$asked}{path}", %{ $want{$asked}{env} });
            my $got = Serai::Plain::shown($reply, {});
            push @bad, "run $n of $asked: " . first_difference($got, $want{$asked}{text}) if $got ne $want{$asked}{text};
        }
    }
    ok !@bad, "$name, ten times each" or diag join "\n", @bad, substr $site->log, $from, 2000;
    my ($why) = substr($site->log, $from) =~ /\Q$name\E runs in a process of its own for each request: (.*)/;
    is defined $why, defined $apart, "$name runs where it should" or diag $why;
    like $why, $apart, 'why' if defined $why && defined $apart;
}
$worker->quit;
is $site->ended, 0;
done_testing;

sub first_difference ($got, $want) {
    my $at = 0;
    $at++ while $at < length $got && $at < length $want && substr($got, $at, 1) eq substr($want, $at, 1);
    my $from = $at > 80 ? $at - 80 : 0;
    return sprintf "at %d: got %s, not %s", $at, substr($got, $from, 200), substr $want, $from, 200;
}
