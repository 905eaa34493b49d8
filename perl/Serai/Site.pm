package Serai::Site;

# Loading the code of a site, as its tenant. What is wrong with it is one
# sentence: what, where, and what to do.

use v5.36;
use Cwd ();
use Scalar::Util qw(blessed reftype);

# The fields of a block (docs/reference/zygote-protocol.md), numbers with what
# they are where they are left out.
my @LIST   = qw(script per-request inc env run);
my %NUMBER = (persistent => 1, min => 0, max => 1, idle => 300_000, requests => 0, size => 0, slow => 0);
my %TEXT   = map { $_ => 1 } qw(site app startup reload);

# new reads a block into a site. It dies with a sentence where the block is none.
sub new ($class, $block) {
    my $site = $class->read_block($block);
    die "the block has neither app nor script\n" if !defined $site->{app} && !@{ $site->{script} };
    return $site;
}

# task reads the block of a task, a command in the surroundings of its site.
sub task ($class, $block) {
    my $task = $class->read_block($block);
    die "the block has no run\n" if !@{ $task->{run} };
    return $task;
}

sub read_block ($class, $block) {
    my @fields = eval { unpack '(N/a*)*', $block };
    die "the block is no list of names and values\n" if @fields & 1;
    my %site = (site => '?', %NUMBER, map { $_ => [] } @LIST);
    while (my ($name, $value) = splice @fields, 0, 2) {
        if (ref $site{$name}) { push @{ $site{$name} }, $value }
        elsif (exists $NUMBER{$name}) {
            die "the block's $name is no number\n" if $value !~ /\A[0-9]{1,15}\z/;
            $site{$name} = $value + 0;
        }
        elsif ($TEXT{$name}) { $site{$name} = $value }
        else { die "the block has an unknown field $name\n" }
    }
    return bless \%site, $class;
}

# alone says whether the site's main process is its only worker.
sub alone ($site) { return $site->{max} <= 1 && !defined $site->{startup} }

# enter goes to the site's root, a directory relative to the home.
sub enter ($site, $home, $root) {
    my $want = "$home/$root";
    my $real_home = Cwd::realpath($home) // $home;
    die "the home $home cannot be entered: $!: ask the operator\n" if !chdir $home;
    if (!chdir $root) {
        my $why = $!;
        die "no such directory $want: create it or correct spec.root\n" if !-e $want;
        die "$want is no directory: correct spec.root\n" if !-d _;
        die "$want cannot be entered: $why: its owner must be allowed to (chmod u+rwx)\n";
    }
    my $real = Cwd::getcwd() // '';
    if ($real ne $real_home && index($real, "$real_home/") != 0) {
        chdir $real_home;
        die "spec.root $root leads out of the home, to $real: use a directory of the home\n";
    }
    @$site{qw(root home place)} = ($real, $real_home, $want);    # place may go through links
}

# set_environment makes %ENV the site's.
sub set_environment ($site, $account, $home) {
    %ENV = (
        PATH => '/usr/local/bin:/usr/bin:/bin', LANG => 'C.UTF-8',
        HOME => $home, USER => $account, LOGNAME => $account,
        defined $site->{app} ? (PLACK_ENV => 'deployment') : (),
        map { split /=/, $_, 2 } grep { /=/ } @{ $site->{env} },
    );
}

# export_inc lets a perl that is run find the site's modules.
sub export_inc ($site) {
    my @dirs = map { m{^/} ? $_ : "$site->{root}/$_" } @{ $site->{inc} };
    $ENV{PERL5LIB} = join ':', @dirs, grep { defined && length } $ENV{PERL5LIB} if @dirs;
}

# load runs the startup file and loads the application or makes the scripts
# ready; after it the site answers. It dies with a sentence.
sub load ($site) {
    my $root = $site->{root};
    if (@{ $site->{inc} }) {
        require lib;
        lib->import(map { m{^/} ? $_ : "$root/$_" } @{ $site->{inc} });
    }
    $site->run_file($site->{startup}) if defined $site->{startup};
    if (defined $site->{app}) {
        my $app = $site->run_file($site->{app});
        $app = $app->to_app if blessed($app) && $app->can('to_app');
        if ((reftype($app) // '') ne 'CODE' && !(blessed($app) && overload::Method($app, '&{}'))) {
            die "$site->{app}: its last statement gives no PSGI application: let the file end with the application, a code reference\n";
        }
        require Serai::PSGI;
        Serai::PSGI::serve_by($site, $app);
    }
    else {
        require Serai::Scripts;
        Serai::Scripts::serve_by($site);
    }
}

# run_file runs a file of the site as a program would be, and returns the value
# of its last statement.
sub run_file ($site, $file) {
    my $path = "$site->{root}/$file";
    die "$file: no such file in $site->{root}: create it or correct the manifest\n" if !-e $path;
    die "$file is no file: correct the manifest\n" if !-f _;
    my $title = $0;
    $0 = $path;
    local @ARGV = ();
    FindBin::again() if $INC{'FindBin.pm'};
    local ($@, $!);
    my $value = Serai::Site::Room::run($path);
    my ($error, $why) = ($@, $!);
    $0 = $title;
    if (defined $error && (ref $error || length $error)) {
        print STDERR "Serai: $file did not load: $error" . ("$error" =~ /\n\z/ ? '' : "\n");
        $site->{error} = "$error";
        die sentence("$error", $site->{root}, $file) . "\n";
    }
    die "$file cannot be read: $why: its owner must be allowed to (chmod u+r $file)\n" if !defined $value && !-r $path;
    return $value;
}

# sentence makes one of what Perl says when code does not load. Files beneath
# the root are named relative to it.
sub sentence ($error, $root, $file) {
    my @lines = grep { !/^(?:BEGIN failed|Compilation failed|\s+main::|Execution of)/ } split /\n/, $error;
    my ($line) = grep { / at .+ line \d+/ } @lines;
    $line //= $lines[0] // $error;
    $line = substr $line, 0, 1500;
    my ($what, $where, $number, $rest) = $line =~ /^(.*?) at ((?:(?! at ).)+?) line (\d+)(?:\.$|, <\S+> (?:line|chunk) \d+\.$)?(.*)/s;
    if (!defined $where) { return clean("$file: $line") }
    $where =~ s/^\Q$root\E\///;
    if ($what =~ /^Can't locate (\S+) in \@INC/) {
        my $module = $1;
        if ($module =~ s/\.pm\z//) {
            $module =~ s{/}{::}g;
            return clean("$where line $number: the Perl module $module is not installed: install it beneath the site"
                . " (cpanm -L local $module, with local/lib/perl5 in spec.perl.inc) or ask the operator");
        }
        return clean("$where line $number: no such file $module in \@INC: write the path as ./$module or name its directory in spec.perl.inc");
    }
    $rest =~ s/^,?\s*/, / if length $rest;
    return clean("$where line $number: $what$rest");
}

# clean makes a text fit for one line of a message.
sub clean ($text) {
    utf8::encode($text) if utf8::is_utf8($text);
    $text =~ s/[\x00-\x1f\x7f]+/ /g;
    $text =~ s/[\s:.]+\z//;
    return $text;
}

# What a file sees around it: no variables of ours.
package Serai::Site::Room;

sub run {
    package main;    ## the package that a program begins in
    no strict; no warnings;
    no feature ':all';
    use feature ':default';
    my $value = do $_[0];
    return $value;
}

1;
